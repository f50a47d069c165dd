"""The SEV-SNP launch digest of given bytes, by `sev-snp-measure`.

The machine is the contract's: QEMU, processor model EPYC-v4, OVMF with kernel hashes, guest
features 0x1 (SNP active). Blocks while it reads and hashes: 75 MiB take about 50 ms.
"""

from __future__ import annotations

from typing import Any

from agent.errors import AgentError
from agent.host.files import StorageError
from agent.model.measurement import SNP_CPU_MODEL, MeasuredLaunch

DIGEST_BYTES = 48
GUEST_FEATURES = 0x1
_EMPTY = "/dev/null"


class UnmeasurableError(AgentError):
    """No launch digest can be computed: the firmware is not one for SEV-SNP."""

    @property
    def code(self) -> str:
        return "firmware_unfit"


def snp_launch_digest(launch: MeasuredLaunch) -> bytes:
    """The 48 bytes that the processor measures. Raises UnmeasurableError, StorageError."""
    try:
        return _digest(launch)
    except OSError as error:
        raise StorageError(f"cannot measure {error.filename}: {error.strerror}") from error
    except (RuntimeError, ValueError, AssertionError, KeyError) as error:
        # What the library's parser makes of a file that is no such firmware.
        raise UnmeasurableError(
            "the firmware has no SEV-SNP metadata for a measured direct kernel boot; "
            "use an OVMF that has (scripts/fetch-firmware finds one)"
        ) from error


def _digest(launch: MeasuredLaunch) -> bytes:
    """As the library's `snp_calc_launch_digest`, which would read kernel and initrd once more."""
    from sevsnpmeasure.gctx import GCTX
    from sevsnpmeasure.guest import snp_update_metadata_pages
    from sevsnpmeasure.ovmf import OVMF
    from sevsnpmeasure.sev_mode import SevMode
    from sevsnpmeasure.vcpu_types import CPU_SIGS
    from sevsnpmeasure.vmm_types import VMMType
    from sevsnpmeasure.vmsa import VMSA

    context, firmware = GCTX(), OVMF(str(launch.firmware))
    context.update_normal_pages(firmware.gpa(), firmware.data())
    snp_update_metadata_pages(context, firmware, _hashes(launch), VMMType.QEMU)
    signature, reset_eip = CPU_SIGS[SNP_CPU_MODEL], firmware.sev_es_reset_eip()
    processor = VMSA(SevMode.SEV_SNP, reset_eip, signature, GUEST_FEATURES, VMMType.QEMU)
    for page in processor.pages(launch.vcpus):
        context.update_vmsa_page(page)
    digest: bytes = context.ld()
    return digest


def _hashes(launch: MeasuredLaunch) -> Any:
    """The table of hashes that the firmware checks kernel, initrd and command line with."""
    from sevsnpmeasure.sev_hashes import SevHashes

    kernel, initrd = launch.kernel_sha256, launch.initrd_sha256
    if kernel is None or initrd is None:
        return SevHashes(str(launch.kernel), str(launch.initrd), launch.cmdline)
    table = SevHashes(_EMPTY, _EMPTY, launch.cmdline)
    table.kernel_hash, table.initrd_hash = bytes.fromhex(kernel), bytes.fromhex(initrd)
    return table
