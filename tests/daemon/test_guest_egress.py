"""What the egress policy became, what of it is told, and what is foreseen of a release."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from agent.api.page import status_view
from agent.config import Config, NetworkConfig, NetworkMode, TrafficMode
from agent.daemon.choices import CannotStartError, Choices
from agent.daemon.egress import (
    EgressReporter,
    is_restricted,
    policy_of,
    settle_egress,
)
from agent.daemon.egress_names import EgressForesight, resolve_here
from agent.daemon.networks import host_ports_of
from agent.daemon.parts import foresee_of
from agent.host.files import StorageFullError
from agent.model.egress import EgressPolicy, GuestEgress, Refusal, parse_allowed
from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy
from agent.model.release import Release
from agent.model.revision import Wish
from agent.store.damaged import DamagedStore
from agent.store.port import StoreDamagedError
from agent.store.sqlite import SqliteStore
from agent.updates.engine.commands import UpdateEngine
from agent.updates.engine.engine import EngineRuntime
from agent.updates.orders import PlanQuestion
from agent.updates.snapshot.publisher import SnapshotPublisher
from agent.updates.snapshot.snapshot import Resolved
from agent.wire.host_views import CoordinatorView
from simulator.instant_host import InstantHost
from simulator.manual_clock import ManualClock
from simulator.rows import deployment, release
from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = await SqliteStore.open(tmp_path / "agent.db", ManualClock().now)
    yield made
    await made.close()


NOBODY = CoordinatorView(
    configured=False, connected=False, last_report_at=None, session_expires_at=None, outbox=0
)


def config(tmp_path: Path, **network: Any) -> Config:
    return Config(state_dir=tmp_path, network=NetworkConfig(**network))


def choices(network: NetworkMode = NetworkMode.TAP, traffic: str = "nftables") -> Choices:
    def is_now(value: str) -> Resolved:
        return Resolved(value=value, reason="as tried")

    return Choices(
        tee=is_now("none"),
        supervisor=is_now("detached"),
        network=is_now(network),
        traffic=is_now(traffic),
    )


async def settled(tmp_path: Path, store: Any, **network: Any) -> str:
    return (await settle_egress(config(tmp_path, **network), choices(), store)).egress.value


def deploys(store: SqliteStore) -> Any:
    return store.transact(lambda tx: tx.put_deployment(deployment()))


async def test_a_new_installation_is_closed_and_stays_so(
    tmp_path: Path, store: SqliteStore
) -> None:
    assert await settled(tmp_path, store) == "internet"
    await deploys(store)
    assert await settled(tmp_path, store) == "internet"


async def test_one_with_deployments_stays_open_until_somebody_says_what_it_needs(
    tmp_path: Path, store: SqliteStore
) -> None:
    await deploys(store)
    assert await settled(tmp_path, store) == "any"
    assert await settled(tmp_path, store) == "any"
    assert await settled(tmp_path, store, guest_egress=GuestEgress.NONE) == "none"
    assert await settled(tmp_path, store) == "internet"


async def test_one_whose_deployments_are_gone_is_like_a_new_one(
    tmp_path: Path, store: SqliteStore
) -> None:
    await deploys(store)
    assert await settled(tmp_path, store) == "any"
    await store.transact(lambda tx: tx.delete_deployment(deployment().name))
    assert await settled(tmp_path, store) == "internet"


async def test_a_full_disk_stops_no_start_of_an_installation_that_runs_something(
    tmp_path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StorageFullError("no room")

    monkeypatch.setattr("agent.daemon.egress.write_atomic", full)
    with pytest.raises(StorageFullError):  # the next start might find deployments, and open them
        await settled(tmp_path, store)
    assert await settled(tmp_path, store, guest_egress=GuestEgress.NONE) == "none"
    await deploys(store)
    assert await settled(tmp_path, store) == "any"


async def test_a_damaged_store_opens_and_closes_nothing(
    tmp_path: Path, store: SqliteStore
) -> None:
    damaged = DamagedStore(StoreDamagedError("torn"))
    assert await settled(tmp_path, damaged) == "any"
    assert not (tmp_path / "guest-egress-is-closed").exists()
    assert await settled(tmp_path, store) == "internet"
    assert await settled(tmp_path, damaged) == "internet"


@pytest.mark.parametrize(
    ("network", "path"),
    [
        ({"guest_egress": GuestEgress.INTERNET}, "network.guest_egress"),
        (
            {"guest_egress": GuestEgress.NONE, "guest_egress_allow": ("10.0.0.0/8",)},
            "network.guest_egress_allow",
        ),
        ({"guest_egress": GuestEgress.NONE, "hairpin": True}, "network.hairpin"),
    ],
)
async def test_what_a_user_mode_network_cannot_hold_is_refused_by_its_field(
    tmp_path: Path, store: SqliteStore, network: dict[str, Any], path: str
) -> None:
    with pytest.raises(CannotStartError, match="user-mode") as raised:
        await settle_egress(config(tmp_path, **network), choices(NetworkMode.USER), store)
    assert raised.value.path == path


@pytest.mark.parametrize("traffic", [TrafficMode.HAPROXY, TrafficMode.USERSPACE])
async def test_a_hairpin_without_nftables_is_refused_by_its_field(
    tmp_path: Path, store: SqliteStore, traffic: TrafficMode
) -> None:
    with pytest.raises(CannotStartError, match=r"network\.hairpin: .*nftables alone"):
        await settle_egress(config(tmp_path, hairpin=True), choices(traffic=traffic), store)


async def reporter(
    tmp_path: Path, store: SqliteStore, network: NetworkMode = NetworkMode.TAP, **fields: Any
) -> EgressReporter:
    made = config(tmp_path, **fields)
    chosen = await settle_egress(made, choices(network), store)
    host = InstantHost(store, ManualClock(), tmp_path)
    return EgressReporter(made, chosen, host.runtime.publisher, host.traffic)


def codes(publisher: SnapshotPublisher) -> list[str]:
    return [one.code for one in publisher.snapshot.problems]


async def test_an_open_host_is_a_problem_until_the_key_is_set(
    tmp_path: Path, store: SqliteStore
) -> None:
    await deploys(store)
    told = await reporter(tmp_path, store)
    told.begin()
    assert codes(told.publisher) == ["guest_egress_unset"]
    told = await reporter(tmp_path, store, guest_egress=GuestEgress.ANY)
    told.begin()
    assert codes(told.publisher) == []


async def test_a_user_mode_network_that_holds_nothing_is_a_problem_until_it_is_accepted(
    tmp_path: Path, store: SqliteStore
) -> None:
    told = await reporter(tmp_path, store, NetworkMode.USER)
    told.begin()
    assert codes(told.publisher) == ["guest_egress_unheld"]
    (problem,) = told.publisher.snapshot.problems
    assert "metadata addresses too" in problem.detail
    told = await reporter(tmp_path, store, NetworkMode.USER, guest_egress=GuestEgress.ANY)
    told.begin()
    assert codes(told.publisher) == []


async def test_status_shows_the_policy_and_what_it_refused(
    tmp_path: Path, store: SqliteStore
) -> None:
    told = await reporter(tmp_path, store, guest_egress_allow=("10.0.0.0/8:443",))
    told.begin()
    shown = status_view(told.publisher.snapshot, NOBODY).egress
    assert shown is not None
    assert (shown.policy, shown.allow, shown.refused) == ("internet", ["10.0.0.0/8:443"], [])
    refused = Refusal(destination="10.1.2.3", protocol="tcp", port=80, count=7)
    told._show((refused,))
    shown = status_view(told.publisher.snapshot, NOBODY).egress
    assert msgspec.to_builtins(shown)["refused"] == [
        {"destination": "10.1.2.3", "protocol": "tcp", "port": 80, "count": 7}
    ]
    version = told.publisher.snapshot.version
    told._show((refused,))
    assert told.publisher.snapshot.version == version  # nothing new wakes nobody


async def test_what_a_running_qemu_was_launched_with_is_read_from_itself() -> None:
    for word, restricted in (('{"restrict":true}', True), ('{"restrict":false}', False)):
        process = await asyncio.create_subprocess_exec("sh", "-c", "read x", word, stdin=-1)
        assert is_restricted(process.pid) is restricted
        process.kill()
        await process.wait()
        assert is_restricted(process.pid) is None


class Board:
    """In place of the publisher: one deployment whose QEMU has this pid."""

    def __init__(self, pid: int) -> None:
        vm = SimpleNamespace(process=SimpleNamespace(pid=pid))
        facts = SimpleNamespace(enclaves=(SimpleNamespace(row=SimpleNamespace(id="abc"), vm=vm),))
        self.snapshot = SimpleNamespace(deployments={"web": facts})
        self.details: dict[str, str] = {}

    def raise_problem(self, key: str, *, detail: str, **_: str) -> None:
        self.details[key] = detail

    def clear_problem(self, key: str) -> None:
        self.details.pop(key, None)


async def test_guests_that_an_earlier_policy_launched_are_named_until_they_are_gone(
    tmp_path: Path, store: SqliteStore
) -> None:
    closed = config(tmp_path, guest_egress=GuestEgress.NONE)
    chosen = await settle_egress(closed, choices(NetworkMode.USER), store)
    argv = ("sh", "-c", "read x", '{"restrict":false}')
    qemu = await asyncio.create_subprocess_exec(*argv, stdin=-1)
    board = Board(qemu.pid)
    reporter = EgressReporter(closed, chosen, board, None)  # type: ignore[arg-type]
    reporter._tell_of_earlier_launches()
    (detail,) = board.details.values()
    assert detail.endswith("still reach every network: web (abc)")
    qemu.kill()
    await qemu.wait()
    reporter._tell_of_earlier_launches()
    assert board.details == {}


class Resolver:
    """Names with these addresses; `slow.example` is never resolved."""

    def __init__(self, **hosts: str) -> None:
        self.hosts = {name.replace("_", "."): address for name, address in hosts.items()}

    async def __call__(self, host: str) -> Sequence[str]:
        if host == "slow.example":
            await asyncio.Event().wait()
        if host[0].isdigit():
            return (host,)
        return (self.hosts[host],) if host in self.hosts else ()


CONFIG = b"""
containers: [{name: a, image: "registry.example/a@sha256:0"}]
vault-url: https://vault.example:8200
keyserver-url: https://gone.example
shim: {control-plane: "https://public.example"}
"""


def foresight(mode: str, *allow: str, own: Sequence[IPv4Network] = ()) -> EgressForesight:
    resolver = Resolver(
        registry_example="10.1.2.3", vault_example="203.0.113.9", public_example="9.9.9.9"
    )
    policy = EgressPolicy(mode=GuestEgress(mode), allow=tuple(map(parse_allowed, allow)))
    return EgressForesight(policy, lambda: own, resolver)


async def test_names_that_resolve_into_what_is_closed_are_foreseen() -> None:
    asked = release(config=CONFIG)
    own = (IPv4Network("203.0.113.0/24"),)
    registry, vault = await foresight("internet", own=own).warnings(asked)
    assert registry.startswith("containers[0].image: registry.example is 10.1.2.3")
    assert "10.1.2.3/32:443 in network.guest_egress_allow" in registry
    assert "vault.example" in vault
    assert "a network of this host's" in vault
    assert (
        await foresight("internet", "10.0.0.0/8", "203.0.113.9:8200", own=own).warnings(asked)
        == ()
    )
    assert await foresight("any").warnings(asked) == ()
    assert len(await foresight("none").warnings(asked)) == 4


@pytest.mark.parametrize(
    ("address", "mode", "said"),
    [
        ("10.0.0.1", "internet", "in 10.0.0.0/8): open 10.0.0.1/32:443 in network."),
        ("::ffff:10.0.0.1", "internet", "in 10.0.0.0/8): open 10.0.0.1/32:443 in network."),
        ("::ffff:9.9.9.9", "internet", None),
        ("::ffff:169.254.169.254", "any", "(a metadata address): nothing opens it"),
        ("169.254.169.254", "any", "(a metadata address): nothing opens it"),
        ("168.63.129.16", "internet", "(a metadata address): nothing opens it"),
        ("0.0.0.0", "any", "in 0.0.0.0/8): nothing opens it"),
        ("2001:db8::1", "any", "(guests have no IPv6): give it an IPv4 address"),
    ],
)
async def test_each_form_of_an_address_is_what_it_means_with_a_remedy_where_there_is_one(
    address: str, mode: str, said: str | None
) -> None:
    """Also beside an entry that covers everything: it opens no metadata address."""

    async def resolve(host: str) -> Sequence[str]:
        return (address,)

    asked = release(config=b"vault-url: https://vault.example")
    policy = EgressPolicy(mode=GuestEgress(mode))
    found = await EgressForesight(policy, tuple, resolve).warnings(asked)
    assert (said is None) == (found == ())
    assert said is None or said in found[0]
    wide = EgressPolicy(mode=GuestEgress(mode), allow=(parse_allowed("0.0.0.0/0"),))
    opened = await EgressForesight(wide, tuple, resolve).warnings(asked)
    assert (opened == ()) == (said is None or "open 10." in said or "0.0.0.0/8" in said)


async def test_addresses_within_a_config_are_resolved_as_they_are_written() -> None:
    assert await resolve_here("0x7f.1") == ("127.0.0.1",)
    assert await resolve_here("2130706433") == ("127.0.0.1",)
    assert await resolve_here("::ffff:10.0.0.5") == ("::ffff:10.0.0.5",)


async def test_a_name_that_is_not_resolved_in_time_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent.daemon.egress_names._DEADLINE_S", 0.1)
    slow = b'vault-url: https://slow.example\nshim: {control-plane: "https://10.0.0.1"}'
    asked = release(config=slow)
    (warning,) = await foresight("internet").warnings(asked)
    assert warning.startswith("shim.control-plane: 10.0.0.1 closed")


def test_the_policy_is_what_was_chosen_with_what_is_configured(tmp_path: Path) -> None:
    chosen = msgspec.structs.replace(
        choices(), egress=Resolved(value=GuestEgress.NONE, reason="configured")
    )
    made = policy_of(config(tmp_path, guest_egress_allow=("10.0.0.0/8",)), chosen)
    assert made == EgressPolicy(mode=GuestEgress.NONE, allow=(parse_allowed("10.0.0.0/8"),))


async def test_a_plan_tells_what_is_foreseen_and_admits_it_all_the_same(
    tmp_path: Path, store: SqliteStore
) -> None:
    host = InstantHost(store, ManualClock(), tmp_path)

    async def foresee(asked: Release) -> tuple[str, ...]:
        return (f"{asked.tag} will not reach its vault",)

    parts = dataclasses.replace(host.runtime.parts, foresee=foresee)
    host.runtime = EngineRuntime(parts, host.runtime.publisher.snapshot.host)
    host.engine = UpdateEngine(host.runtime)
    await host.runtime.start()
    await host.deploy(DeploymentName("web"), "v1")
    planned = await host.engine.plan(PlanQuestion(deployment=DeploymentName("web"), tag="v2"))
    assert planned.strategy is DecidedStrategy.BLUE_GREEN
    assert "v2 will not reach its vault" in planned.warnings
    await host.runtime.close()


async def test_what_is_foreseen_is_what_the_daemons_policy_closes(tmp_path: Path) -> None:
    vault = release(config=b"vault-url: https://10.1.2.3:8200")

    async def foreseen(mode: str, network: NetworkMode = NetworkMode.TAP) -> int:
        became = Resolved(value=mode, reason="")
        chosen = msgspec.structs.replace(choices(network), egress=became)
        return len(await foresee_of(config(tmp_path), chosen)(vault))

    assert [await foreseen(mode) for mode in ("internet", "any", "none")] == [1, 0, 1]
    assert await foreseen("any", NetworkMode.USER) == 0
    assert await foreseen("none", NetworkMode.USER) == 1


@pytest.mark.parametrize(
    ("listen", "ports"),
    [
        (None, (53,)),
        ("127.0.0.1:8472", (53,)),
        ("10.215.0.1:8472", (53, 8472)),
        ("0.0.0.0:8472", (53, 8472)),
    ],
)
def test_the_endpoint_of_the_collateral_is_open_to_guests_on_taps(
    tmp_path: Path, listen: str | None, ports: tuple[int, ...]
) -> None:
    made = config(tmp_path, host_ports=(53,))
    collateral = msgspec.structs.replace(made.attestation.collateral, listen=listen)
    attestation = msgspec.structs.replace(made.attestation, collateral=collateral)
    assert host_ports_of(msgspec.structs.replace(made, attestation=attestation)) == ports


@pytest.mark.root
async def test_a_daemon_that_had_deployments_before_stays_open_until_it_is_told(
    tmp_path: Path,
) -> None:
    (tmp_path / "releases").mkdir()
    async with running(tmp_path / "releases", mode="tap") as daemon:
        shown = (await daemon.get("/status")).body
        assert shown["egress"] == {
            "policy": "internet",
            "why": "private networks and the host's own are closed by default",
            "allow": [],
            "refused": [],
        }
        assert table_of(daemon) == 0
        daemon.stop()
        (daemon.state / "guest-egress-is-closed").unlink()  # as an earlier version left it
        store = await SqliteStore.open(daemon.state / "agent.db", ManualClock().now)
        await store.transact(lambda tx: tx.put_deployment(deployment(wish=Wish.STOP)))
        await store.close()
        await daemon.up()
        shown = (await daemon.get("/status")).body
        assert shown["egress"]["policy"] == "any"
        assert "guest_egress_unset" in [one["code"] for one in shown["problems"]]
        daemon.stop()
        daemon.configure(network={"guest_egress": "none"})
        await daemon.up()
        shown = (await daemon.get("/status")).body
        assert shown["egress"]["policy"] == "none"
        assert "guest_egress_unset" not in [one["code"] for one in shown["problems"]]


def table_of(daemon: Daemon) -> int:
    argv = ["nft", "list", "table", "inet", f"egress_enclave_agent_{daemon.bridge}"]
    return subprocess.run(argv, check=False, capture_output=True).returncode
