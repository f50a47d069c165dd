"""The stop ladder: power button, then `quit`, then SIGKILL; each rung has its own deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from agent.enclaves.monitor import MonitorError
from agent.enclaves.port import Teardown
from agent.enclaves.vm import Vm, first
from agent.errors import describe

log = logging.getLogger(__name__)

RECONNECT_S = 1.0
PRESS_AGAIN_S = 5.0
QUIT_S = 5.0
KILL_S = 10.0


async def end_vm(
    vm: Vm,
    grace_s: float,
    kill: Callable[[], Awaitable[None]],
    reached: Callable[[Teardown], None],
) -> bool:
    """End a VM, asking ever less politely; its console is harvested before QEMU is told to quit.

    Returns whether its process is gone: False if it is still there after it was killed. Without a
    grace the guest is not asked. `reached` is told of every phase.
    """
    with contextlib.suppress(MonitorError):
        await vm.wait_up(RECONNECT_S)
    if grace_s > 0 and not vm.ended.is_set():
        await _press_power_button(vm, grace_s)
    if vm.ended.is_set() and not vm.gone.is_set():
        reached(Teardown.GUEST_DOWN)
    if not vm.gone.is_set():
        await vm.drain_console()
        await _quit(vm)
    if not vm.gone.is_set():
        await kill()
        await first(KILL_S, vm.gone.wait())
    if vm.gone.is_set():
        reached(Teardown.QEMU_GONE)
    return vm.gone.is_set()


async def _press_power_button(vm: Vm, grace_s: float) -> None:
    """Ask the guest to power off, and again: one that still boots does not hear it."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace_s
    try:
        while (left_s := deadline - loop.time()) > 0:
            await vm.monitor.execute("system_powerdown")
            if await first(min(left_s, PRESS_AGAIN_S), vm.ended.wait(), vm.gone.wait()):
                return
    except MonitorError as error:
        log.warning("guest cannot be asked to power off", extra=_fields(vm, describe(error)))
    else:
        log.info("guest did not power off", extra=_fields(vm, f"not within {grace_s:g} s"))


async def _quit(vm: Vm) -> None:
    with contextlib.suppress(MonitorError):
        await vm.monitor.execute("quit")
        await first(QUIT_S, vm.gone.wait())


def _fields(vm: Vm, reason: str) -> dict[str, str]:
    return {"enclave": vm.enclave_id, "reason": reason}
