"""The doctor's line about cages: whether VMs would be held to what they need, or why not."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config, Tee

_PROVE = "enclave-agent doctor --prove-cage, then restart the agent"


def cage_line(config: Config) -> Line:
    """What the agent would settle on, as far as it can be seen without a trial."""
    from agent.config import CageMode, NetworkMode
    from agent.enclaves.cage_proof import CageProof
    from agent.enclaves.caging import program_of
    from agent.enclaves.port import EnclaveError

    if config.qemu.cage in (CageMode.OFF, CageMode.REPORT):
        return Line("cage", "ok", f"configured: qemu.cage: {config.qemu.cage}")
    if os.geteuid() != 0:
        return Line(
            "cage", "warn", "not root: VMs run as the agent's user, uncaged", "run as root"
        )
    if config.network.mode is NetworkMode.USER:
        detail = "on a user-mode network QEMU has the host's network: VMs are not caged"
        return Line("cage", "warn", detail, "network.mode: tap")
    try:
        program_of(config.qemu.binary)
    except EnclaveError as error:
        return Line("cage", "warn", str(error), "set qemu.binary")
    tee = _real_tee(config)
    if tee is not None:
        lacks = asyncio.run(CageProof(config.state_dir).lacks(config.qemu.binary, tee))
        if lacks is not None:
            return Line("cage", "warn", f"{lacks}: VMs are not caged yet", _PROVE)
    return Line("cage", "ok", "VMs are caged; the agent tries one when it starts")


def cage_proved(config: Config) -> Line:
    """After a guest ran in one, or did not."""
    from agent.config import Tee
    from agent.enclaves.cage_prove import CageProver
    from agent.enclaves.quotes import read_quote_service
    from agent.enclaves.supervisor import Supervisor
    from agent.enclaves.supervisor_detached import DetachedSupervisor
    from agent.enclaves.supervisor_systemd import SystemdSupervisor
    from agent.errors import AgentError, describe
    from agent.host.cgroups import Cgroups
    from agent.host.units import BOOTED

    if os.geteuid() != 0:
        return Line("cage", "error", "a cage takes root", "run this as root")
    units = BOOTED.is_dir() and config.supervisor != "detached"
    supervisor: Supervisor
    if units:
        supervisor = SystemdSupervisor(1.0)
    else:
        cgroups = None if BOOTED.is_dir() or Cgroups().fault() else Cgroups()
        supervisor = DetachedSupervisor(cgroups=cgroups)
    tee = _real_tee(config) or Tee.NONE
    quotes = read_quote_service(config.qemu.quote_service)
    try:
        for directory in (config.run_dir, config.state_dir):
            directory.mkdir(parents=True, exist_ok=True)
        prover = CageProver(supervisor, config.run_dir, config.state_dir)
        asyncio.run(prover.prove(config.qemu.binary, tee, quotes))
    except (AgentError, OSError) as error:
        mend = "mend that; meanwhile qemu.cage: report, if it is set to enforce"
        return Line("cage", "error", describe(error), mend)
    where = "in units" if units else "in rooms of their own"
    return Line("cage", "ok", f"a guest ran in one ({where}; tee: {tee}); restart the agent")


def _real_tee(config: Config) -> Tee | None:
    """The one that the agent would use."""
    from agent.config import Tee

    if config.tee in (Tee.SEV_SNP, Tee.TDX):
        return config.tee
    if config.tee is not Tee.AUTO:
        return None
    switches = {Tee.SEV_SNP: "kvm_amd/parameters/sev_snp", Tee.TDX: "kvm_intel/parameters/tdx"}
    for tee, path in switches.items():
        try:
            if (config.host.sysfs_root / "module" / path).read_text().strip() in {"Y", "1"}:
                return tee
        except OSError:
            continue
    return None
