"""What every `auto` became on this host, and why: tried, not guessed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec

from agent.config import SIMULATED, CageMode, Config, NetworkMode, SupervisorKind, Tee, TrafficMode
from agent.enclaves.tap_probe import probe_tap
from agent.errors import AgentError
from agent.host.units import SCRATCH_NETWORK, probe_units
from agent.model.egress import GuestEgress
from agent.traffic.haproxy_host import probe_haproxy
from agent.traffic.nftables import probe_nftables
from agent.updates.snapshot.snapshot import Resolved

_NO_WALL = "guests can reach what listens on the host's loopback"


class CannotStartError(AgentError):
    """The configuration asks for what this host, or this version, cannot do. Names the field."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path

    @property
    def code(self) -> str:
        return "cannot_start"


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. `egress` is settled last (`egress.py`): it takes what the store has."""

    tee: Resolved
    supervisor: Resolved
    network: Resolved
    traffic: Resolved
    egress: Resolved = Resolved(value=GuestEgress.ANY, reason="not settled yet")
    cage: Resolved = Resolved(value=CageMode.OFF, reason="not settled yet")


async def choose(config: Config) -> Choices:
    """Resolve. Raises CannotStartError."""
    tee = _tee(config)
    needs_units = config.supervisor is not SupervisorKind.DETACHED
    needs_tap = config.network.mode is not NetworkMode.USER
    needs_nft = config.traffic.mode in (TrafficMode.AUTO, TrafficMode.NFTABLES)
    needs_haproxy = config.traffic.mode is TrafficMode.HAPROXY
    no_units, no_nft, no_haproxy = await asyncio.gather(
        probe_units(sys.executable, "-I", "-S", "-c", "") if needs_units else _skipped(),
        probe_nftables() if needs_nft else _skipped(),
        probe_haproxy() if needs_haproxy else _skipped(),
    )
    if no_haproxy is not None:
        raise CannotStartError("traffic.mode", f"haproxy cannot be used: {no_haproxy}")
    units = needs_units and no_units is None
    network = _network(config, await _probe_tap(in_unit=units) if needs_tap else None)
    return Choices(
        tee=tee,
        supervisor=_supervisor(config, no_units),
        network=network,
        traffic=_traffic(config, network, no_nft),
    )


async def _probe_tap(*, in_unit: bool) -> str | None:
    """The unit that we are shipped with may make no namespaces: there systemd makes it."""
    return await (probe_tap(scratch=SCRATCH_NETWORK) if in_unit else probe_tap())


async def _skipped() -> str | None:
    return None


def _tee(config: Config) -> Resolved:
    match config.tee:
        case Tee.NONE:
            return Resolved(value=Tee.NONE, reason="configured; enclaves are plain VMs")
        case Tee.AUTO:
            found = _tee_of_host(config.host.sysfs_root)
            if found is not None:
                return Resolved(value=found, reason="on in this host's kernel")
            if not config.allow_unattested:
                raise CannotStartError(
                    "tee",
                    "no TEE was found on this host; set tee: none and allow_unattested: true "
                    "to run plain VMs, of which nothing is claimed",
                )
            return Resolved(value=Tee.NONE, reason="no TEE on this host; plain VMs are allowed")
        case Tee.SIMULATED:
            reason = f"configured; the agent plays the secure processor: {SIMULATED}"
            return Resolved(value=Tee.SIMULATED, reason=reason)
        case Tee.SEV_SNP | Tee.TDX:
            if _tee_of_host(config.host.sysfs_root) is config.tee:
                return Resolved(value=config.tee, reason="configured")
            reason = "configured, but not on in this host's kernel: no launch passes its preflight"
            return Resolved(value=config.tee, reason=reason)


def _tee_of_host(sysfs_root: Path) -> Tee | None:
    switches = {
        Tee.SEV_SNP: "module/kvm_amd/parameters/sev_snp",
        Tee.TDX: "module/kvm_intel/parameters/tdx",
    }
    for tee, path in switches.items():
        try:
            if (sysfs_root / path).read_text().strip() in {"Y", "1"}:
                return tee
        except OSError:
            continue
    return None


def _supervisor(config: Config, no_units: str | None) -> Resolved:
    match config.supervisor:
        case SupervisorKind.SYSTEMD:
            if no_units is not None:
                raise CannotStartError("supervisor", f"units cannot be had: {no_units}")
            return Resolved(value=SupervisorKind.SYSTEMD, reason="configured")
        case SupervisorKind.DETACHED:
            return Resolved(value=SupervisorKind.DETACHED, reason="configured")
        case SupervisorKind.AUTO:
            if no_units is None:
                reason = "a transient unit with a user of its own runs"
                return Resolved(value=SupervisorKind.SYSTEMD, reason=reason)
            reason = f"{no_units}; VMs run in sessions of their own"
            return Resolved(value=SupervisorKind.DETACHED, reason=reason)


def _network(config: Config, no_tap: str | None) -> Resolved:
    match config.network.mode:
        case NetworkMode.USER:
            return Resolved(value=NetworkMode.USER, reason=f"configured; {_NO_WALL}")
        case NetworkMode.TAP:
            if no_tap is not None:
                raise CannotStartError("network.mode", f"taps cannot be made: {no_tap}")
            return Resolved(value=NetworkMode.TAP, reason="configured")
        case NetworkMode.AUTO:
            if no_tap is None:
                return Resolved(value=NetworkMode.TAP, reason="a bridge and a tap can be made")
            reason = f"taps cannot be made: {no_tap}; {_NO_WALL}"
            return Resolved(value=NetworkMode.USER, reason=reason)


def _traffic(config: Config, network: Resolved, no_nft: str | None) -> Resolved:
    tap = network.value == NetworkMode.TAP
    match config.traffic.mode:
        case TrafficMode.HAPROXY:
            return Resolved(value=TrafficMode.HAPROXY, reason="configured")
        case TrafficMode.USERSPACE:
            return Resolved(value=TrafficMode.USERSPACE, reason="configured")
        case TrafficMode.NFTABLES:
            if not tap:
                raise CannotStartError(
                    "traffic.mode",
                    "nftables needs guests on taps, and the network is user-mode "
                    f"({network.reason}); use traffic.mode: userspace",
                )
            if no_nft is not None:
                raise CannotStartError("traffic.mode", f"nftables cannot be used: {no_nft}")
            return Resolved(value=TrafficMode.NFTABLES, reason="configured")
        case TrafficMode.AUTO:
            if not tap:
                reason = "guests on a user-mode network are reached through the host's loopback"
                return Resolved(value=TrafficMode.USERSPACE, reason=reason)
            if no_nft is not None:
                reason = f"nftables cannot be used: {no_nft}"
                return Resolved(value=TrafficMode.USERSPACE, reason=reason)
            return Resolved(value=TrafficMode.NFTABLES, reason="NAT maps can be made")
