"""What an earlier configuration left on the host: moved, taken away, or refused by name.

Nothing of it stays in force: a data plane of another kind ends before the chosen one begins, and
with it the connections that went through its process; the kernel's own go on. What cannot be moved
is an enclave: it keeps the address that it was told, and so the network that has it.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import AsyncIterator, Iterable

from agent.config import Config, NetworkMode, SupervisorKind, TrafficMode
from agent.daemon.choices import CannotStartError, Choices
from agent.daemon.networks import data_plane, port_holder, runner_of, signs_of_port_holder
from agent.enclaves.network import NetworkError
from agent.enclaves.network_tap import TapNetwork
from agent.errors import AgentError, describe
from agent.host.commands import run_command
from agent.host.files import StorageError
from agent.host.network_news import KIND
from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.store.port import Store
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.nftables_former import FormerTables
from agent.traffic.nftables_kernel import table_of
from agent.traffic.port import TrafficError
from agent.traffic.sysctls import Sysctls

log = logging.getLogger(__name__)


async def settle(config: Config, choices: Choices, store: Store) -> None:
    """Before anything of the chosen configuration is started. Idempotent.

    Raises CannotStartError, having touched nothing, if enclaves live elsewhere; and if something
    cannot be taken away.
    """
    refuse_elsewhere(config, choices, await store.read(lambda tx: tx.enclaves()))
    try:
        async for what in _taken_away(config, choices):
            log.info("earlier configuration taken away", extra={"what": what})
            reason = f"{what} of an earlier configuration was taken away"
            draft = EventDraft(kind=KIND, to="moved", reason=reason)
            await store.transact(lambda tx, draft=draft: tx.append(draft))  # type: ignore[misc]
    except (TrafficError, NetworkError, StorageError, OSError) as error:
        said = describe(error) if isinstance(error, AgentError) else str(error)
        raise CannotStartError(
            "traffic.mode",
            f"what an earlier configuration left in force cannot be taken away: {said}; mend "
            "that, or set the earlier one again",
        ) from error


def refuse_elsewhere(config: Config, choices: Choices, rows: Iterable[Enclave]) -> None:
    """Raises CannotStartError that names the field and who is in the way."""
    tap = choices.network.value == NetworkMode.TAP
    network = config.network
    subnet = ipaddress.IPv4Network(network.subnet if tap else network.loopback_subnet)
    for row in rows:
        address = ipaddress.IPv4Address(row.address)
        if address in subnet:
            continue
        other_kind = address.is_loopback == tap
        own = "network.subnet" if tap else "network.loopback_subnet"
        why = f"{choices.network.value}, by {choices.network.reason}" if other_kind else subnet
        raise CannotStartError(
            "network.mode" if other_kind else own,
            f"an enclave of {row.deployment} has the address {row.address}, which is not in the "
            f"configured network ({why}): set it back to what it was, stop {row.deployment}, and "
            "change it then",
        )


async def _taken_away(config: Config, choices: Choices) -> AsyncIterator[str]:
    """What it was, each once it is gone."""
    chosen = TrafficMode(choices.traffic.value)
    network = TapNetwork(
        config.network.bridge, config.network.subnet, instance=str(config.state_dir)
    )
    units = choices.supervisor.value == SupervisorKind.SYSTEMD
    signs = {
        TrafficMode.HAPROXY: (config.state_dir / "haproxy.json", config.run_dir / "haproxy"),
        TrafficMode.USERSPACE: (
            config.state_dir / "traffic.json",
            config.run_dir / "traffic.sock",
        ),
    }
    for mode, left in signs.items():
        if mode is not chosen and any(path.exists() for path in left):
            plane = data_plane(config, mode, network, in_units=units)
            assert not isinstance(plane, NftablesTraffic)
            await plane.shutdown()
            yield f"the {mode} data plane"
    # The proxy binds all of its ports itself; the other two have a holder, the same one.
    if chosen is TrafficMode.USERSPACE and any(
        path.exists() for path in signs_of_port_holder(config)
    ):
        await port_holder(config, runner_of(config, in_units=units)).shutdown()
        yield "the holder of ports"
    if chosen is not TrafficMode.NFTABLES:
        async for what in _tables(config, network):
            yield what
    if choices.network.value != NetworkMode.TAP and await _bridges(network):
        await network.restore()
        yield "the bridge of the tap network"


async def _tables(config: Config, network: TapNetwork) -> AsyncIterator[str]:
    record, sysctls = config.state_dir / "tables.json", config.state_dir / "sysctls.json"

    async def names() -> list[str]:
        return [table_of(bridge) for bridge in await _bridges(network)]

    if not (record.exists() or sysctls.exists()):
        return
    former = FormerTables(None, record, names, run_command)
    await former.note()
    for table in await former.remove():
        yield f"the nftables table {table}"
    Sysctls(config.network.bridge, sysctls).restore()
    former.forget()


async def _bridges(network: TapNetwork) -> list[str]:
    """None where links cannot even be looked at: nobody makes bridges there."""
    try:
        return await network.bridges()
    except NetworkError:
        return []
