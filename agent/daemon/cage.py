"""Whether VMs are caged on this host, and why not: tried, not guessed."""

from __future__ import annotations

import os

import msgspec

from agent.config import CageMode, Config, NetworkMode, SupervisorKind, Tee
from agent.daemon.choices import Choices
from agent.enclaves.cage_proof import CageProof, try_cage
from agent.enclaves.cage_prove import CageLook
from agent.enclaves.caging import Caging
from agent.enclaves.supervisor import Supervisor
from agent.enclaves.supervisor_detached import DetachedSupervisor
from agent.enclaves.supervisor_systemd import SystemdSupervisor
from agent.host.cgroups import Cgroups
from agent.host.units import BOOTED, borrow_here
from agent.updates.snapshot.snapshot import Resolved

_UNAVAILABLE = "unavailable"  # it is insisted on, and cannot be had


async def settle_cage(config: Config, choices: Choices) -> Choices:
    """The choices with that of the cage, which takes all others."""
    return msgspec.structs.replace(choices, cage=await _cage(config, choices))


async def _cage(config: Config, choices: Choices) -> Resolved:
    wanted = config.qemu.cage
    if wanted in (CageMode.OFF, CageMode.REPORT):
        return Resolved(value=wanted, reason="configured; VMs are held as their supervisor has it")
    if os.geteuid() != 0:
        return Resolved(value=CageMode.OFF, reason="it takes root: VMs run as the agent's user")
    if choices.network.value == NetworkMode.USER:
        reason = "on a user-mode network QEMU itself opens connections; use network.mode: tap"
        return Resolved(value=CageMode.REPORT, reason=reason)
    tee = Tee(choices.tee.value)
    if tee in (Tee.SEV_SNP, Tee.TDX):
        lacks = await CageProof(config.state_dir).lacks(config.qemu.binary, tee)
        if lacks is not None:
            reason = f"{lacks}: run `enclave-agent doctor --prove-cage`, then restart the agent"
            return Resolved(value=CageMode.REPORT, reason=reason)
    units = choices.supervisor.value == SupervisorKind.SYSTEMD
    fault = await try_cage(_supervisor(choices), config.run_dir, config.qemu.binary)
    if fault is None:
        how = "in units" if units else "in rooms of their own"
        unlimited = "" if units else cgroups_of_ours()[1]
        how += f", with no limit of memory: {unlimited}" if unlimited else ""
        return Resolved(value=CageMode.ENFORCE, reason=f"one was tried; VMs are caged {how}")
    value = _UNAVAILABLE if wanted is CageMode.ENFORCE else CageMode.REPORT
    return Resolved(value=value, reason=f"none can be made here: {fault}")


def caging_of(choices: Choices) -> Caging | None:
    """How the launcher cages; None where it does not."""
    if choices.cage.value != CageMode.ENFORCE:
        return None
    units = choices.supervisor.value == SupervisorKind.SYSTEMD
    return Caging(borrow=borrow_here if units else None)


def cage_look_of(config: Config, choices: Choices) -> CageLook | None:
    """Who looks from inside a cage, where VMs are in some."""
    if choices.cage.value != CageMode.ENFORCE:
        return None
    return CageLook(_supervisor(choices), config.run_dir)


def _supervisor(choices: Choices) -> Supervisor:
    """For what ends by itself."""
    if choices.supervisor.value == SupervisorKind.SYSTEMD:
        return SystemdSupervisor(1.0)
    return DetachedSupervisor(cgroups=cgroups_of_ours()[0])


def refusal_of(choices: Choices) -> str | None:
    """Why nothing new may be admitted."""
    if choices.cage.value != _UNAVAILABLE:
        return None
    return f"qemu.cage: enforce, and {choices.cage.reason}; mend that, or set qemu.cage: report"


def cgroups_of_ours() -> tuple[Cgroups | None, str]:
    """Control groups for VMs that no unit has, or why there are none."""
    if BOOTED.is_dir():
        return None, "control groups are systemd's own"
    cgroups = Cgroups()
    fault = cgroups.fault()
    return (None, fault) if fault else (cgroups, "")
