"""The network and the data plane that were chosen, and what watches over them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from agent.config import Config, NetworkMode, SupervisorKind, TrafficMode
from agent.daemon.choices import Choices
from agent.daemon.egress import policy_of
from agent.enclaves.network import Network
from agent.enclaves.network_tap import TapNetwork
from agent.enclaves.network_user import UserNetwork
from agent.host.clock import Clock
from agent.host.commands import RunCommand, run_command
from agent.host.guest_sockets import GuestSockets
from agent.host.lent_namespace import LentNamespace
from agent.host.network_namespace import NetworkNamespace
from agent.host.network_news import NetworkNews
from agent.host.units import beside_us
from agent.host.units import in_units as run_in_units
from agent.inventory.local_addresses import read_local_addresses
from agent.model.egress import NO_POLICY, EgressPolicy, GuestEgress
from agent.model.link_names import outside_link
from agent.model.resources import Listen
from agent.probes.outside import OutsideProber
from agent.probes.outside_link import OutsideLink
from agent.probes.port import NobodyOutside
from agent.traffic.foreign_watch import ForeignRules
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.haproxy_sessions import disconnect_by, disconnect_here
from agent.traffic.holding import ProcessHolder
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.nftables_kernel import table_of
from agent.traffic.nftables_watch import NftablesWatch
from agent.traffic.userspace import UserspaceTraffic


def network_of(config: Config, choices: Choices, news: NetworkNews | None = None) -> Network:
    """The network that was chosen. `news`: where its watch tells of what it finds."""
    network = config.network
    if choices.network.value == NetworkMode.USER:
        return UserNetwork(
            network.loopback_subnet,
            config.run_dir / "host-ports.json",
            restricted=choices.egress.value == GuestEgress.NONE,
        )
    return TapNetwork(
        network.bridge,
        network.subnet,
        instance=str(config.state_dir),
        gated=choices.traffic.value == TrafficMode.NFTABLES,
        policy=policy_of(config, choices),
        hairpin=network.hairpin,
        host_ports=host_ports_of(config),
        news=news,
    )


def guest_sockets(config: Config, choices: Choices) -> GuestSockets:
    """How the agent itself reaches guests on the network that was chosen."""
    tap = choices.network.value == NetworkMode.TAP
    return GuestSockets(config.network.bridge if tap else None)


def traffic_of(
    config: Config, choices: Choices, network: Network
) -> NftablesTraffic | HaproxyTraffic | UserspaceTraffic:
    """The data plane that was chosen."""
    units = choices.supervisor.value == SupervisorKind.SYSTEMD
    mode = TrafficMode(choices.traffic.value)
    egress = policy_of(config, choices)
    return data_plane(config, mode, network, in_units=units, egress=egress)


def host_ports_of(config: Config) -> tuple[int, ...]:
    """TCP ports of the host that guests may reach, that of the collateral's endpoint with them."""
    asked = config.attestation.collateral.listen
    listen = Listen.parse(asked) if asked else None
    if listen is None or ipaddress.ip_address(listen.address).is_loopback:
        return config.network.host_ports
    return tuple(sorted({*config.network.host_ports, listen.port}))


def data_plane(
    config: Config,
    mode: TrafficMode,
    network: Network,
    *,
    in_units: bool,
    egress: EgressPolicy = NO_POLICY,
) -> NftablesTraffic | HaproxyTraffic | UserspaceTraffic:
    """One of this kind. An agent with a bridge of its own has its own table."""
    run = runner_of(config, in_units=in_units)
    if mode is TrafficMode.NFTABLES:

        async def former_tables() -> list[str]:
            bridges = await network.former_bridges() if isinstance(network, TapNetwork) else []
            return [table_of(bridge) for bridge in bridges]

        return NftablesTraffic(
            config.network.bridge,
            config.network.subnet,
            host_ports_of(config),
            egress=egress,
            hairpin=config.network.hairpin,
            state_file=config.state_dir / "sysctls.json",
            table=table_of(config.network.bridge),
            limits=config.limits,
            holder=port_holder(config, run),
            former_tables=former_tables,
        )
    if mode is TrafficMode.HAPROXY:
        return HaproxyTraffic(
            config.run_dir / "haproxy",
            config.state_dir / "haproxy.json",
            holder=port_holder(config, run),
            limits=config.limits,
            run_command=run,
            disconnect=disconnect_by(beside_us()) if in_units else disconnect_here,
        )
    return UserspaceTraffic(
        socket=config.run_dir / "traffic.sock",
        state_file=config.state_dir / "traffic.json",
        log_file=config.state_dir / "traffic.log",
        limits=config.limits,
        run_command=run,
    )


def port_holder(config: Config, run: RunCommand) -> ProcessHolder:
    """For a data plane that does not listen on all that it serves or refuses."""
    socket, state_file = signs_of_port_holder(config)
    process = UserspaceTraffic(
        socket=socket,
        state_file=state_file,
        log_file=config.state_dir / "traffic.log",
        answer_s=5.0,
        run_command=run,
    )
    return ProcessHolder(process)


def signs_of_port_holder(config: Config) -> tuple[Path, Path]:
    """Its socket and its state: one of them is there as long as it is."""
    return config.run_dir / "ports.sock", config.state_dir / "ports.json"


def watches_of(
    config: Config,
    traffic: NftablesTraffic | HaproxyTraffic | UserspaceTraffic,
    news: NetworkNews,
) -> tuple[Callable[[], Coroutine[Any, Any, None]], ...]:
    """What is watched of the data plane besides the routes themselves."""
    if not isinstance(traffic, NftablesTraffic):
        return ()
    network = config.network
    foreign = ForeignRules(network.bridge, network.subnet, table_of(network.bridge))
    return (NftablesWatch(traffic, foreign, news).run,)


def outside_of(
    config: Config, choices: Choices, clock: Clock, news: NetworkNews
) -> OutsideProber | NobodyOutside:
    """Who asks listeners as clients do: from outside, where this process may make such a place."""
    if config.probes.outside == "never":
        return NobodyOutside()
    network = config.network
    tap = choices.network.value == NetworkMode.TAP
    units = choices.supervisor.value == SupervisorKind.SYSTEMD
    create = LentNamespace.create if units else NetworkNamespace.create
    link = OutsideLink(outside_link(network.bridge), avoid=(network.subnet,), create=create)
    return OutsideProber(
        config.probes,
        clock,
        link if os.geteuid() == 0 else None,
        addresses=read_local_addresses,
        relayed=not (tap and choices.traffic.value == TrafficMode.NFTABLES),
        stirred=news.stirred,
        network_at_fault=lambda: any(one.severity == "error" for one in news.problems.values()),
    )


def runner_of(config: Config, *, in_units: bool) -> RunCommand:
    """How the processes of a data plane are begun."""
    if not in_units:
        return run_command
    return run_in_units(
        "enclave-traffic",
        "Data plane of enclave-agent",
        writable=(config.state_dir, config.run_dir),
        complaints=config.run_dir,
    )
