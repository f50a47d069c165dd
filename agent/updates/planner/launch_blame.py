"""What a launch that failed is held against: its GPUs, or nobody. Pure; the one judge of it.

After a few launches in a row a GPU that is blamed for them goes into quarantine for good, so that
a host whose memory, firmware or QEMU is at fault must not lose one good GPU after another to it.
"""

from __future__ import annotations

from agent.enclaves.last_words import accuse, accused, speaks_of_platform
from agent.model.enclave import Enclave
from agent.model.ids import Bdf
from agent.model.revision import Fault

# QEMU ended, at its start or later: its last words tell, or nothing does.
_QEMU_ENDED = frozenset({"qemu_exited", "qemu_exit"})
# It was started with the devices and does not come up; unless it says why, it waits for them.
_QEMU_HANGS = frozenset({"qmp_unavailable"})
# The guest ended or stayed in its boot. What failed before that (the host is not ready, the
# measurement is another, a cancel), and a VM that is gone without a trace, say nothing of them.
_GUEST_FAILED = frozenset(
    {"guest_shutdown", "guest_reset", "guest_panicked", "vm_exited", "boot_timeout"}
)


def suspect(fault: Fault | None) -> bool:
    """Whether a launch that failed so may be the doing of devices that it was given."""
    if fault is None:
        return False
    if fault.code in _QEMU_HANGS:
        return not speaks_of_platform(fault.detail)
    return fault.code in _GUEST_FAILED or (fault.code in _QEMU_ENDED and accuse(fault.detail))


def suspects(fault: Fault | None, row: Enclave) -> tuple[Bdf, ...]:
    """Those of the enclave's GPUs and switches that this may be the doing of: one, if named."""
    devices = (*row.gpus, *row.switches)
    if fault is None or not suspect(fault):
        return ()
    named = () if fault.code in _GUEST_FAILED else accused(fault.detail, devices)
    return named or devices
