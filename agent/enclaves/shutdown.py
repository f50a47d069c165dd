"""The stop ladder: power button, then `quit`, then SIGKILL; each rung has its own deadline.

The first rung can be had alone: a guest that powers off leaves QEMU and its network as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from agent.enclaves.monitor import GUEST_SHUTDOWN, MonitorError
from agent.enclaves.port import ServesBooted, Teardown
from agent.enclaves.vm import Vm, first
from agent.errors import describe
from agent.model.power_button import Press

log = logging.getLogger(__name__)

RECONNECT_S = 1.0
PRESS_AGAIN_S = 5.0
TELLING_GRACE_S = 3.0  # in less time a guest that heard may look as if it had not
QUIT_S = 5.0
KILL_S = 10.0


async def end_vm(
    vm: Vm,
    grace_s: float,
    kill: Callable[[], Awaitable[None]],
    reached: Callable[[Teardown], None],
    serves_booted: ServesBooted,
) -> tuple[bool, Press]:
    """End a VM, asking ever less politely; its console is harvested before QEMU is told to quit.

    Returns whether its process is gone (False if it is still there after it was killed), and what
    came of the power button. Without a grace the guest is not asked. `reached` is told of every
    phase.
    """
    press = await ask_guest(vm, grace_s, reached, serves_booted)
    if not vm.gone.is_set():
        await vm.drain_console()
        await _quit(vm)
    if not vm.gone.is_set():
        await kill()
        await first(KILL_S, vm.gone.wait())
    if vm.gone.is_set():
        reached(Teardown.QEMU_GONE)
    return vm.gone.is_set(), press


async def ask_guest(
    vm: Vm, grace_s: float, reached: Callable[[Teardown], None], serves_booted: ServesBooted
) -> Press:
    """Have the guest power off, if there is a grace; its VM stays until it is ended."""
    press = Press.NONE
    with contextlib.suppress(MonitorError):
        await vm.wait_up(RECONNECT_S)
    if grace_s > 0 and not vm.ended.is_set():
        press = await _press_power_button(vm, grace_s, serves_booted)
    if vm.ended.is_set() and not vm.gone.is_set():
        reached(Teardown.GUEST_DOWN)
    return press


async def _press_power_button(vm: Vm, grace_s: float, serves_booted: ServesBooted) -> Press:
    """Ask the guest to power off, and again: one that still boots does not hear it.

    A press counts as ignored only of a guest that had booted when it was asked first, and still
    shows itself booted when the grace is over: one that is merely slow closes its doors first, one
    that hangs does not answer. A grace of moments shows neither.
    """
    booted = asyncio.ensure_future(serves_booted())
    try:
        if await _pressed(vm, grace_s):
            by_button = vm.end is not None and vm.end.reason == GUEST_SHUTDOWN
            return Press.HEARD if by_button else Press.UNCLEAR
        log.info("guest did not power off", extra=_fields(vm, f"not within {grace_s:g} s"))
        if grace_s < TELLING_GRACE_S or not (await booted and await serves_booted()):
            return Press.UNCLEAR
        return Press.UNCLEAR if vm.ended.is_set() else Press.IGNORED
    except MonitorError as error:
        log.warning("guest cannot be asked to power off", extra=_fields(vm, describe(error)))
        return Press.UNCLEAR
    finally:
        booted.cancel()
        await asyncio.gather(booted, return_exceptions=True)


async def _pressed(vm: Vm, grace_s: float) -> bool:
    """Press now and again; whether the guest ended within the grace. Raises MonitorError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + grace_s
    while (left_s := deadline - loop.time()) > 0:
        await vm.monitor.execute("system_powerdown")
        if await first(min(left_s, PRESS_AGAIN_S), vm.ended.wait(), vm.gone.wait()):
            return True
    return False


async def _quit(vm: Vm) -> None:
    with contextlib.suppress(MonitorError):
        await vm.monitor.execute("quit")
        await first(QUIT_S, vm.gone.wait())


def _fields(vm: Vm, reason: str) -> dict[str, str]:
    return {"enclave": vm.enclave_id, "reason": reason}
