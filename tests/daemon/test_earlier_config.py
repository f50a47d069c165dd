"""What an earlier configuration left in force is taken away at the start, or refused by name."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio

from agent.config import Config, NetworkConfig, NetworkMode, SupervisorKind, TrafficMode
from agent.daemon import earlier_config
from agent.daemon.choices import CannotStartError, Choices
from agent.daemon.networks import data_plane, network_of, traffic_of
from agent.model.ids import EnclaveId
from agent.model.resources import Listen
from agent.store.port import Store
from agent.store.sqlite import SqliteStore
from agent.traffic.nftables import NftablesTraffic
from agent.updates.snapshot.snapshot import Resolved
from simulator import rows
from simulator.manual_clock import ManualClock
from tests.fakes.netns import ip, own_host
from tests.traffic.worlds import free_listen, order

BRIDGE = "vnec0"


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = await SqliteStore.open(tmp_path / "agent.db", ManualClock().now)
    yield made
    await made.close()


@pytest.fixture
def alone() -> Iterator[None]:
    with own_host():
        yield


def configured(short_dir: Path, **network: object) -> Config:
    chosen = NetworkConfig(**{"bridge": BRIDGE, **network})  # type: ignore[arg-type]
    for name in ("state", "run"):
        (short_dir / name).mkdir(exist_ok=True)
    return msgspec.structs.replace(
        Config(), state_dir=short_dir / "state", run_dir=short_dir / "run", network=chosen
    )


def chosen(network: NetworkMode, traffic: TrafficMode) -> Choices:
    def because(value: str) -> Resolved:
        return Resolved(value=value, reason="configured")

    return Choices(
        tee=because("none"),
        supervisor=because(SupervisorKind.DETACHED),
        network=because(network),
        traffic=because(traffic),
    )


TAP_NFT = chosen(NetworkMode.TAP, TrafficMode.NFTABLES)
TAP_HAPROXY = chosen(NetworkMode.TAP, TrafficMode.HAPROXY)
USER = chosen(NetworkMode.USER, TrafficMode.USERSPACE)


async def moved(store: Store) -> list[str]:
    events = await store.read(lambda tx: tx.events(0))
    return [str(one.reason) for one in events if (one.kind, one.to) == ("network", "moved")]


def nft_tables() -> str:
    argv = ["nft", "list", "tables"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@contextlib.asynccontextmanager
async def began(
    config: Config, choices: Choices, listen: Listen | None = None
) -> AsyncIterator[None]:
    """As the daemon does, without VMs, with a route in force; nothing of it is left at the end."""
    network = network_of(config, choices)
    traffic = traffic_of(config, choices, network)
    try:
        await traffic.start()
        await network.start()
        await traffic.apply(order(1, (listen or free_listen(), None)))
        await traffic.close()
        yield
    finally:
        nftables = isinstance(traffic, NftablesTraffic)
        await (traffic.restore() if nftables else traffic.shutdown())


@pytest.mark.root
@pytest.mark.parametrize("then", [TAP_HAPROXY, USER], ids=["haproxy", "user"])
async def test_the_nftables_table_goes_when_another_data_plane_is_chosen(
    alone: None, store: SqliteStore, short_dir: Path, then: Choices
) -> None:
    config, listen = configured(short_dir), free_listen()
    ip("link add name up0 type veth peer name up1")
    ip("addr add 192.0.2.1/24 dev up0")
    ip("link set up0 up")
    table = f"the nftables table enclave_agent_{BRIDGE}"
    expected, user = [table], then is USER
    if user:
        expected = ["the holder of ports", table, "the bridge of the tap network"]
    told = [f"{one} of an earlier configuration was taken away" for one in expected]
    async with began(config, TAP_NFT, listen):
        assert f"enclave_agent_{BRIDGE}" in nft_tables()
        await earlier_config.settle(config, TAP_NFT, store)  # nothing has changed
        assert f"enclave_agent_{BRIDGE}" in nft_tables()
        await earlier_config.settle(config, then, store)
        assert nft_tables() == ""
        assert Path("/proc/sys/net/ipv4/conf/up0/forwarding").read_text() == "0\n"
        assert (BRIDGE in ip("-br link")) is not user
        assert await moved(store) == told
        await earlier_config.settle(config, then, store)
        assert await moved(store) == told
        async with began(config, then, listen):  # which has the port
            pass


@pytest.mark.root
async def test_a_bridge_and_table_of_another_agent_stay(
    alone: None, store: SqliteStore, short_dir: Path
) -> None:
    (short_dir / "theirs").mkdir()
    (short_dir / "ours").mkdir()
    async with began(configured(short_dir / "theirs"), TAP_NFT):
        await earlier_config.settle(configured(short_dir / "ours"), USER, store)
        assert f"enclave_agent_{BRIDGE}" in nft_tables()
        assert BRIDGE in ip("-br link")
        assert await moved(store) == []


@pytest.mark.root
async def test_another_bridge_moves_table_and_bridge(
    alone: None, store: SqliteStore, short_dir: Path
) -> None:
    async with began(configured(short_dir), TAP_NFT):
        config = configured(short_dir, bridge="vnec1")
        await earlier_config.settle(config, TAP_NFT, store)
        network = network_of(config, TAP_NFT)
        traffic = traffic_of(config, TAP_NFT, network)
        assert isinstance(traffic, NftablesTraffic)
        await traffic.start()
        assert f"enclave_agent_{BRIDGE}" not in nft_tables()
        assert len(await traffic.observe()) == 1
        await network.start()
        assert BRIDGE not in ip("-br link")
        assert "vnec1" in ip("-br link")
        await traffic.restore()


@pytest.mark.parametrize("mode", [TrafficMode.USERSPACE, TrafficMode.HAPROXY])
async def test_a_proxy_ends_and_lets_its_listeners_go(
    store: SqliteStore, short_dir: Path, mode: TrafficMode
) -> None:
    config = configured(short_dir)
    listen = free_listen()
    earlier = chosen(NetworkMode.USER, mode)
    network = network_of(config, earlier)
    plane = data_plane(config, mode, network, in_units=False)
    await plane.start()
    await plane.apply(order(1, (listen, None)))
    await plane.close()
    other = TrafficMode.HAPROXY if mode is TrafficMode.USERSPACE else TrafficMode.USERSPACE
    await earlier_config.settle(config, chosen(NetworkMode.USER, other), store)
    with socket.create_server((listen.address, listen.port)):
        pass
    assert await moved(store) == [
        f"the {mode} data plane of an earlier configuration was taken away"
    ]


@pytest.mark.root
async def test_what_cannot_be_taken_away_is_refused_by_name(
    alone: None, store: SqliteStore, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(short_dir)
    async with began(config, TAP_NFT):
        with monkeypatch.context() as changed:
            changed.setenv("PATH", "/nowhere")
            with pytest.raises(CannotStartError, match=r"^traffic\.mode: what an earlier config"):
                await earlier_config.settle(config, TAP_HAPROXY, store)


@pytest.mark.parametrize(
    ("address", "choices", "field"),
    [
        ("10.215.0.7", TAP_NFT, None),
        ("10.99.0.7", TAP_NFT, "network.subnet"),
        ("127.215.0.7", TAP_NFT, "network.mode"),
        ("127.215.0.7", USER, None),
        ("127.9.0.7", USER, "network.loopback_subnet"),
        ("10.215.0.7", USER, "network.mode"),
    ],
)
async def test_enclaves_that_live_elsewhere_are_named_before_anything_is_touched(
    store: SqliteStore, short_dir: Path, address: str, choices: Choices, field: str | None
) -> None:
    row = rows.enclave(EnclaveId("aaaaaaaa"), address=address)

    def record(tx) -> None:  # type: ignore[no-untyped-def]
        tx.put_deployment(rows.deployment("web"))
        tx.put_enclave(row)

    await store.transact(record)
    config = configured(short_dir)
    if field is None:
        earlier_config.refuse_elsewhere(config, choices, [row])
        return
    with pytest.raises(CannotStartError) as caught:
        await earlier_config.settle(config, choices, store)
    assert caught.value.path == field
    assert "an enclave of web has the address" in str(caught.value)
    assert "stop web, and change it then" in str(caught.value)
