"""What every store promises, whichever it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from agent.model.enclave import Lifecycle
from agent.model.event import GENESIS, STORE_RESTORED, EventDraft
from agent.model.gpu import CcMode
from agent.model.identity import KnownDevices, KnownLaunch, KnownMachine
from agent.model.ids import Bdf, DeploymentName, EnclaveId, LeaseId, UpdateId
from agent.model.lease import Claim, ClaimKind, Sample
from agent.model.preparation import GpuCondition
from agent.store.chain import verify_chain
from agent.store.port import ClaimTakenError, KeptAnswer, Store, StoreError, Transaction
from agent.store.retention import REVISIONS_KEPT, UPDATES_KEPT
from agent.store.sqlite import SqliteStore
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.rows import (
    deployment,
    enclave,
    finished_update,
    instant,
    lease,
    revision,
    update,
)
from tests.fakes.gpus import known, quarantine

WEB = DeploymentName("web")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["sqlite", "memory"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[Store]:
    made: Store
    if request.param == "sqlite":
        made = await SqliteStore.open(tmp_path / "store.db", clock.now, events_kept=5)
    else:
        made = MemoryStore(clock.now, events_kept=5)
    yield made
    await made.close()


def putting(*puts: Callable[[Transaction], object]) -> Callable[[Transaction], None]:
    """One callback that does several things."""

    def work(t: Transaction) -> None:
        for put in puts:
            put(t)

    return work


def with_deployment(*puts: Callable[[Transaction], object]) -> Callable[[Transaction], None]:
    return putting(lambda t: t.put_deployment(deployment()), *puts)


async def test_a_fresh_store_is_empty(store: Store):
    assert await store.read(lambda r: r.deployments()) == []
    assert await store.read(lambda r: r.enclaves()) == []
    assert await store.read(lambda r: r.claims()) == []
    assert await store.read(lambda r: r.leases()) == []
    assert await store.read(lambda r: r.events(0)) == []
    assert await store.read(lambda r: r.event_bounds()) == (1, 0)
    assert await store.read(lambda r: r.checkpoint()) == (0, GENESIS)
    assert await store.read(lambda r: r.deployment(WEB)) is None
    assert await store.read(lambda r: r.meta("epoch")) is None
    assert await store.read(lambda r: r.secret_versions(WEB)) == {}


async def test_what_was_put_is_read_back_and_replaced_by_id(store: Store):
    await store.transact(
        with_deployment(
            lambda t: t.put_revision(revision()),
            lambda t: t.put_update(update()),
            lambda t: t.put_enclave(enclave()),
            lambda t: t.put_lease(lease()),
            lambda t: t.set_meta("epoch", "7"),
        )
    )
    assert await store.read(lambda r: r.deployment(WEB)) == deployment()
    assert await store.read(lambda r: r.revision(WEB, 1)) == revision()
    assert await store.read(lambda r: r.update(UpdateId("u1"))) == update()
    assert await store.read(lambda r: r.enclave(EnclaveId("aaaaaaaa"))) == enclave()
    assert await store.read(lambda r: r.leases()) == [lease()]
    assert await store.read(lambda r: r.meta("epoch")) == "7"

    await store.transact(
        putting(
            lambda t: t.put_deployment(deployment(last_revision=9)),
            lambda t: t.put_revision(revision(tag="v9")),
            lambda t: t.put_update(update(accepted=True)),
            lambda t: t.put_enclave(enclave(lifecycle=Lifecycle.RUNNING)),
            lambda t: t.put_lease(lease(holder="other")),
            lambda t: t.set_meta("epoch", "8"),
        )
    )
    assert await store.read(lambda r: r.deployments()) == [deployment(last_revision=9)]
    assert await store.read(lambda r: r.revisions(WEB)) == [revision(tag="v9")]
    assert await store.read(lambda r: r.updates(WEB)) == [update(accepted=True)]
    assert await store.read(lambda r: r.enclaves()) == [enclave(lifecycle=Lifecycle.RUNNING)]
    assert await store.read(lambda r: r.leases()) == [lease(holder="other")]
    assert await store.read(lambda r: r.meta("epoch")) == "8"


async def test_what_is_remembered_of_gpus_is_kept_by_key_and_forgotten_on_order(store: Store):
    first, second = known("GPU-1"), known(None, quarantine=quarantine())
    await store.transact(
        putting(lambda t: t.put_known_gpu(first), lambda t: t.put_known_gpu(second))
    )
    assert await store.read(lambda r: r.known_gpus()) == [first, second]
    moved = msgspec.structs.replace(first, bdf=None, location=None)
    await store.transact(
        putting(
            lambda t: t.put_known_gpu(moved),
            lambda t: t.delete_known_gpu(second.key),
            lambda t: t.delete_known_gpu("at:nowhere"),
        )
    )
    assert await store.read(lambda r: r.known_gpus()) == [moved]


async def test_what_was_learned_of_evidence_is_kept_by_kind_and_key(store: Store):
    machine = KnownMachine(machine="m", source="CHIP_ID", chip="aa", learned_at=instant())
    launch = KnownLaunch(
        launch_uuid="m/CHIP_ID",
        enclave=EnclaveId("aaaaaaaa"),
        report_id=None,
        spki_sha256="5a",
        devices=("g1",),
        first_at=instant(),
    )
    await store.transact(
        putting(lambda t: t.put_identity(machine), lambda t: t.put_identity(launch))
    )
    other = msgspec.structs.replace(machine, chip="bb")
    await store.transact(lambda t: t.put_identity(other))
    assert await store.read(lambda r: r.identities(KnownMachine)) == [other]
    await store.transact(lambda t: t.delete_identity(other))
    assert await store.read(lambda r: r.identities(KnownMachine)) == []
    assert await store.read(lambda r: r.identities(KnownLaunch)) == [launch]
    assert await store.read(lambda r: r.identities(KnownDevices)) == []


async def test_replacing_a_deployment_keeps_what_belongs_to_it(store: Store):
    await store.transact(with_deployment(lambda t: t.put_revision(revision())))
    await store.transact(lambda t: t.put_deployment(deployment(last_revision=2)))
    assert await store.read(lambda r: r.revisions(WEB)) == [revision()]


async def test_a_transaction_reads_what_it_wrote(store: Store):
    def work(t: Transaction) -> tuple[int, int]:
        before = len(t.deployments())
        t.put_deployment(deployment())
        return before, len(t.deployments())

    assert await store.transact(work) == (0, 1)


async def test_a_callback_that_raises_leaves_nothing_and_its_error_comes_out(store: Store):
    class OwnError(Exception):
        pass

    raised = OwnError("no")

    def work(t: Transaction) -> None:
        t.put_deployment(deployment())
        t.claim(Claim(kind=ClaimKind.GPU, key="0000:01:00.0", holder="aaaaaaaa"))
        t.append(EventDraft(kind="note"))
        t.add_sample(Sample(kind="boot", key="web", value_s=1))
        raise raised

    with pytest.raises(OwnError) as caught:
        await store.transact(work)
    assert caught.value is raised
    assert await store.read(lambda r: r.deployments()) == []
    assert await store.read(lambda r: r.claims()) == []
    assert await store.read(lambda r: r.events(0)) == []
    assert await store.read(lambda r: r.samples("boot", "web")) == []
    await store.transact(lambda t: t.put_deployment(deployment()))
    assert await store.read(lambda r: r.deployments()) == [deployment()]


async def test_an_error_of_a_reader_comes_out_and_the_store_goes_on(store: Store):
    with pytest.raises(ZeroDivisionError):
        await store.read(lambda r: 1 // len(r.deployments()))
    assert await store.read(lambda r: r.deployments()) == []


async def test_a_callback_that_runs_out_of_an_iterator_is_an_error_and_no_hang(store: Store):
    with pytest.raises(RuntimeError, match="StopIteration"):
        await store.transact(lambda t: next(iter(t.deployments())))
    with pytest.raises(RuntimeError, match="StopIteration"):
        await store.read(lambda r: next(iter(r.deployments())))
    assert await store.read(lambda r: r.deployments()) == []


@pytest.mark.parametrize(
    "put",
    [
        lambda t: t.put_revision(revision(name="stray")),
        lambda t: t.put_update(update(name="stray")),
        lambda t: t.put_enclave(enclave(name="stray")),
        lambda t: t.put_secret_version(DeploymentName("stray"), "KEY", 1, "00"),
    ],
)
async def test_nothing_belongs_to_a_deployment_that_is_not_there(
    store: Store, put: Callable[[Transaction], None]
):
    with pytest.raises(StoreError):
        await store.transact(with_deployment(put))
    assert await store.read(lambda r: r.deployments()) == []


async def test_within_a_transaction_the_order_of_puts_does_not_matter(store: Store):
    await store.transact(
        putting(
            lambda t: t.put_enclave(enclave()),
            lambda t: t.put_revision(revision()),
            lambda t: t.put_deployment(deployment()),
        )
    )
    assert await store.read(lambda r: r.enclaves(WEB)) == [enclave()]


async def test_deployments_come_by_name_and_revisions_and_updates_newest_first(store: Store):
    await store.transact(
        putting(
            *[lambda t, n=n: t.put_deployment(deployment(n)) for n in ("web", "api", "web-2")],
            *[lambda t, n=n: t.put_revision(revision(n)) for n in (2, 10, 1)],
            *[lambda t, n=n: t.put_update(finished_update(n)) for n in ("u9", "u1", "u5")],
            lambda t: t.put_update(finished_update("other", "api")),
        )
    )
    names = await store.read(lambda r: [row.name for row in r.deployments()])
    assert names == ["api", "web", "web-2"]
    numbers = await store.read(lambda r: [row.number for row in r.revisions(WEB)])
    assert numbers == [10, 2, 1]
    await store.transact(lambda t: t.put_update(update("u9")))
    ids = await store.read(lambda r: [row.id for row in r.updates(WEB)])
    assert ids == ["u5", "u1", "u9"]
    newest = await store.read(lambda r: [row.id for row in r.updates(WEB, limit=1)])
    assert newest == ["u5"]


async def test_the_running_update_is_the_one_that_is_not_finished(store: Store):
    await store.transact(
        with_deployment(
            lambda t: t.put_update(update("u1")),
            lambda t: t.put_update(finished_update("u2")),
        )
    )
    assert await store.read(lambda r: r.running_update(WEB)) == update("u1")
    await store.transact(lambda t: t.put_update(finished_update("u1")))
    assert await store.read(lambda r: r.running_update(WEB)) is None
    assert await store.read(lambda r: r.running_update(DeploymentName("api"))) is None


async def test_enclaves_come_by_creation_and_then_id(store: Store):
    rows = [
        enclave("cccccccc", created_at=instant(1001)),
        enclave("bbbbbbbb", created_at=instant(1002)),
        enclave("aaaaaaaa", created_at=instant(1002)),
        enclave("dddddddd", name="api", created_at=instant(1000)),
    ]
    await store.transact(
        putting(
            lambda t: t.put_deployment(deployment()),
            lambda t: t.put_deployment(deployment("api")),
            *[lambda t, row=row: t.put_enclave(row) for row in reversed(rows)],
        )
    )
    everyone = await store.read(lambda r: [row.id for row in r.enclaves()])
    assert everyone == ["dddddddd", "cccccccc", "aaaaaaaa", "bbbbbbbb"]
    ours = await store.read(lambda r: [row.id for row in r.enclaves(WEB)])
    assert ours == ["cccccccc", "aaaaaaaa", "bbbbbbbb"]


async def test_a_claim_has_one_holder(store: Store):
    mine = Claim(kind=ClaimKind.ADDRESS, key="10.0.0.2", holder="aaaaaaaa")
    await store.transact(lambda t: t.claim(mine))
    await store.transact(lambda t: t.claim(mine))
    theirs = Claim(kind=ClaimKind.ADDRESS, key="10.0.0.2", holder="bbbbbbbb")
    with pytest.raises(ClaimTakenError) as caught:
        await store.transact(lambda t: t.claim(theirs))
    assert (caught.value.wanted, caught.value.holder) == (theirs, "aaaaaaaa")
    assert await store.read(lambda r: r.claims()) == [mine]
    other_kind = Claim(kind=ClaimKind.GPU, key="10.0.0.2", holder="bbbbbbbb")
    await store.transact(lambda t: t.claim(other_kind))
    assert await store.read(lambda r: r.claims()) == [mine, other_kind]


async def test_a_taken_claim_that_the_callback_survives_does_not_spoil_the_rest(store: Store):
    await store.transact(lambda t: t.claim(Claim(kind="gpu", key="0", holder="aaaaaaaa")))

    def first_free(t: Transaction) -> str:
        for key in ("0", "1"):
            try:
                t.claim(Claim(kind="gpu", key=key, holder="bbbbbbbb"))
            except ClaimTakenError:
                continue
            return key
        return "none"

    assert await store.transact(first_free) == "1"
    assert len(await store.read(lambda r: r.claims())) == 2


async def test_released_claims_are_free_for_others(store: Store):
    claims = [Claim(kind=k, key="1", holder="aaaaaaaa") for k in ("address", "gpu")]
    kept = Claim(kind="gpu", key="2", holder="bbbbbbbb")
    await store.transact(putting(*[lambda t, c=c: t.claim(c) for c in (*claims, kept)]))
    await store.transact(lambda t: t.release_claims("aaaaaaaa", "gpu"))
    assert await store.read(lambda r: r.claims()) == [claims[0], kept]
    await store.transact(lambda t: t.release_claims("aaaaaaaa"))
    assert await store.read(lambda r: r.claims()) == [kept]


async def test_an_enclave_goes_with_its_claims_but_not_with_a_namesakes_listeners(store: Store):
    listen = Claim(kind=ClaimKind.LISTEN, key="0.0.0.0:443", holder="aaaaaaaa")
    gpu = Claim(kind=ClaimKind.GPU, key="0", holder="aaaaaaaa")
    await store.transact(
        putting(
            lambda t: t.put_deployment(deployment("aaaaaaaa")),
            lambda t: t.put_enclave(enclave("aaaaaaaa", "aaaaaaaa")),
            lambda t: t.claim(listen),
            lambda t: t.claim(gpu),
        )
    )
    await store.transact(lambda t: t.delete_enclave(EnclaveId("aaaaaaaa")))
    assert await store.read(lambda r: r.enclaves()) == []
    assert await store.read(lambda r: r.claims()) == [listen]
    await store.transact(lambda t: t.claim(gpu))
    await store.transact(lambda t: t.delete_deployment(DeploymentName("aaaaaaaa")))
    assert await store.read(lambda r: r.claims()) == [gpu]


async def test_a_deployment_goes_with_what_belongs_to_it(store: Store):
    other = Claim(kind=ClaimKind.LISTEN, key="127.0.0.1:2", holder="api")
    await store.transact(
        with_deployment(
            lambda t: t.put_deployment(deployment("api")),
            lambda t: t.put_revision(revision()),
            lambda t: t.put_revision(revision(name="api")),
            lambda t: t.put_update(update()),
            lambda t: t.put_secret_version(WEB, "KEY", 1, "00"),
            lambda t: t.claim(Claim(kind=ClaimKind.LISTEN, key="127.0.0.1:1", holder="web")),
            lambda t: t.claim(other),
        )
    )
    await store.transact(lambda t: t.delete_deployment(WEB))
    assert await store.read(lambda r: r.deployments()) == [deployment("api")]
    assert await store.read(lambda r: r.revisions(WEB)) == []
    assert await store.read(lambda r: r.revisions(DeploymentName("api"))) != []
    assert await store.read(lambda r: r.update(UpdateId("u1"))) is None
    assert await store.read(lambda r: r.secret_versions(WEB)) == {}
    assert await store.read(lambda r: r.claims()) == [other]


async def test_a_deployment_with_enclaves_cannot_go(store: Store):
    await store.transact(with_deployment(lambda t: t.put_enclave(enclave())))
    with pytest.raises(StoreError, match="enclaves of web are still there"):
        await store.transact(lambda t: t.delete_deployment(WEB))
    await store.transact(
        putting(
            lambda t: t.delete_enclave(EnclaveId("aaaaaaaa")),
            lambda t: t.delete_deployment(WEB),
        )
    )
    assert await store.read(lambda r: r.deployments()) == []


async def test_deleting_what_is_not_there_is_fine(store: Store):
    await store.transact(
        putting(
            lambda t: t.delete_deployment(WEB),
            lambda t: t.delete_enclave(EnclaveId("aaaaaaaa")),
            lambda t: t.delete_lease(LeaseId("l1")),
            lambda t: t.delete_secret(WEB, "KEY"),
            lambda t: t.release_claims("aaaaaaaa"),
        )
    )


async def test_leases_come_by_creation_and_go(store: Store):
    rows = [lease("l2", created_at=instant(1)), lease("l1", created_at=instant(2))]
    await store.transact(putting(*[lambda t, row=row: t.put_lease(row) for row in rows[::-1]]))
    assert await store.read(lambda r: r.leases()) == rows
    await store.transact(lambda t: t.delete_lease(LeaseId("l2")))
    assert await store.read(lambda r: r.leases()) == rows[1:]


async def test_secret_versions_are_replaced_and_deleted_by_name(store: Store):
    await store.transact(
        with_deployment(
            lambda t: t.put_secret_version(WEB, "KEY", 1, "aa"),
            lambda t: t.put_secret_version(WEB, "TOKEN", 1, "bb"),
            lambda t: t.put_secret_version(WEB, "KEY", 2, "cc"),
        )
    )
    assert await store.read(lambda r: r.secret_versions(WEB)) == {
        "KEY": (2, "cc"),
        "TOKEN": (1, "bb"),
    }
    await store.transact(lambda t: t.delete_secret(WEB, "KEY"))
    assert await store.read(lambda r: r.secret_versions(WEB)) == {"TOKEN": (1, "bb")}


async def test_digests_of_secrets_are_kept_as_long_as_a_revision_names_their_version(
    store: Store,
):
    def names(number: int, **secrets: int) -> Callable[[Transaction], object]:
        row = revision(number, WEB, secrets=secrets)
        return lambda t: t.put_revision(row)

    await store.transact(
        with_deployment(
            lambda t: t.put_secret_version(WEB, "KEY", 1, "aa"),
            names(2, KEY=1),
            lambda t: t.put_secret_version(WEB, "KEY", 2, "bb"),
            lambda t: t.put_secret_version(WEB, "KEY", 3, "cc"),
        )
    )
    assert await store.read(lambda r: r.secret_digests(WEB)) == {
        ("KEY", 1): "aa",
        ("KEY", 3): "cc",
    }
    await store.transact(lambda t: t.delete_secret(WEB, "KEY"))
    assert await store.read(lambda r: r.secret_digests(WEB)) == {("KEY", 1): "aa"}
    await store.transact(putting(*[names(n) for n in range(3, REVISIONS_KEPT + 3)]))
    assert await store.read(lambda r: r.secret_digests(WEB)) == {}


async def test_digests_of_secrets_go_with_their_deployment(store: Store):
    await store.transact(with_deployment(lambda t: t.put_secret_version(WEB, "KEY", 1, "aa")))
    await store.transact(lambda t: t.delete_deployment(WEB))
    assert await store.read(lambda r: r.secret_digests(WEB)) == {}


async def test_the_newest_two_hundred_samples_are_kept(store: Store):
    def add(t: Transaction) -> None:
        for n in range(203):
            t.add_sample(Sample(kind="boot", key="web", value_s=n))
        t.add_sample(Sample(kind="boot", key="api", value_s=0.5))

    await store.transact(add)
    assert await store.read(lambda r: r.samples("boot", "web", limit=3)) == [202, 201, 200]
    kept = await store.read(lambda r: r.samples("boot", "web", limit=1000))
    assert kept == [float(n) for n in range(202, 2, -1)]
    assert await store.read(lambda r: r.samples("boot", "api")) == [0.5]
    assert await store.read(lambda r: r.samples("downtime", "web")) == []


async def test_events_are_numbered_stamped_and_chained(store: Store, clock: ManualClock):
    draft = EventDraft(kind="update", deployment="web", from_="boot", to="verify", actor="a")
    first = await store.transact(lambda t: t.append(draft))
    clock.advance(1.25)
    second = await store.transact(lambda t: t.append(EventDraft(kind="note", reason="é")))
    assert (first.sequence, first.previous, first.at) == (
        1,
        GENESIS,
        "2026-01-01T00:00:00.000000Z",
    )
    assert (first.kind, first.from_, first.to, first.actor) == ("update", "boot", "verify", "a")
    assert (second.sequence, second.previous) == (2, first.hash)
    assert second.at == "2026-01-01T00:00:01.250000Z"
    assert await store.read(lambda r: r.events(0)) == [first, second]
    assert await store.read(lambda r: r.events(1)) == [second]
    assert await store.read(lambda r: r.events(0, limit=1)) == [first]
    assert await store.read(lambda r: r.events(2)) == []
    assert await store.read(lambda r: r.event_bounds()) == (1, 2)


async def test_pruned_events_leave_a_checkpoint_from_which_the_chain_goes_on(store: Store):
    appended = [await store.transact(lambda t: t.append(EventDraft(kind="n"))) for _ in range(8)]
    kept = await store.read(lambda r: r.events(0))
    assert kept == appended[3:]
    assert await store.read(lambda r: r.event_bounds()) == (4, 8)
    checkpoint = await store.read(lambda r: r.checkpoint())
    assert checkpoint == (3, appended[2].hash)
    assert verify_chain(kept, checkpoint, newest=8) is None


async def test_many_events_in_one_transaction_are_one_chain(store: Store):
    def work(t: Transaction) -> None:
        for _ in range(12):
            t.append(EventDraft(kind="n"))

    await store.transact(work)
    events, checkpoint = await store.read(lambda r: (r.events(0), r.checkpoint()))
    assert [event.sequence for event in events] == [8, 9, 10, 11, 12]
    assert verify_chain(events, checkpoint, newest=12) is None


async def test_an_answer_is_kept_for_its_caller_method_path_and_key(store: Store):
    kept = KeptAnswer(body_digest="d", status=202, body=b"\x00\xff{}")
    scope = ("local:0", "POST", "/v1/x", "key")
    await store.transact(lambda t: t.put_answer(*scope, kept))
    assert await store.read(lambda r: r.answer(*scope)) == kept
    for n in range(4):
        other = [*scope[:n], "other", *scope[n + 1 :]]
        assert await store.read(lambda r, other=other: r.answer(*other)) is None
    later = msgspec.structs.replace(kept, status=200)
    await store.transact(lambda t: t.put_answer(*scope, later))
    assert await store.read(lambda r: r.answer(*scope)) == later


async def test_an_answer_expires_after_seven_days_of_the_wall_clock(
    store: Store, clock: ManualClock
):
    kept = KeptAnswer(body_digest="d", status=202, body=b"")
    await store.transact(lambda t: t.put_answer("a", "POST", "/", "k", kept))
    clock.reboot("boot-2")
    clock.jump_wall(7 * 86400)
    assert await store.read(lambda r: r.answer("a", "POST", "/", "k")) == kept
    clock.jump_wall(1)
    assert await store.read(lambda r: r.answer("a", "POST", "/", "k")) is None
    await store.transact(lambda t: t.put_answer("a", "POST", "/", "k2", kept))
    clock.jump_wall(-86400)
    assert await store.read(lambda r: r.answer("a", "POST", "/", "k")) is None


async def test_a_row_that_was_read_cannot_change_the_store(store: Store):
    await store.transact(with_deployment(lambda t: t.put_revision(revision(variables={}))))
    row = await store.read(lambda r: r.revision(WEB, 1))
    assert row is not None
    row.variables["SNEAKED"] = "in"
    again = await store.read(lambda r: r.revision(WEB, 1))
    assert again is not None
    assert again.variables == {}


async def test_ten_megabytes_come_back(store: Store):
    big = {"BIG": "x" * (10 << 20)}
    await store.transact(with_deployment(lambda t: t.put_revision(revision(variables=big))))
    row = await store.read(lambda r: r.revision(WEB, 1))
    assert row == revision(variables=big)


async def test_a_closed_store_says_so(store: Store):
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.read(lambda r: r.deployments())
    with pytest.raises(StoreError, match="closed"):
        await store.transact(lambda t: t.put_deployment(deployment()))


async def test_conditions_of_gpus_are_put_by_bdf_and_go(store: Store):
    rows = [
        GpuCondition(bdf=Bdf(f"0000:0{n}:00.0"), clean=n == 1, since=instant()) for n in (2, 1)
    ]
    await store.transact(putting(*[lambda t, row=row: t.put_gpu_condition(row) for row in rows]))
    assert await store.read(lambda r: r.gpu_conditions()) == rows[::-1]
    again = msgspec.structs.replace(rows[0], clean=True, mode=CcMode.PPCIE, fault="x")
    await store.transact(lambda t: t.put_gpu_condition(again))
    await store.transact(lambda t: t.delete_gpu_condition(rows[1].bdf))
    assert await store.read(lambda r: r.gpu_conditions()) == [again]


async def test_events_go_on_after_a_gap_and_are_pruned_over_it(store: Store):
    def note(t: Transaction) -> None:
        t.append(EventDraft(kind="note"))

    for _ in range(4):
        await store.transact(note)
    restored = EventDraft(kind=STORE_RESTORED)
    event = await store.transact(lambda t: t.append(restored, after=1000))
    await store.transact(note)
    assert event.sequence == 1001
    assert (await store.transact(lambda t: t.append(restored, after=7))).sequence == 1003
    for bounds in ((1, 1004), (1, 1005), (1002, 1006), (1003, 1007)):
        await store.transact(note)
        assert await store.read(lambda r: r.event_bounds()) == bounds
        events, checkpoint = await store.read(lambda r: (r.events(0), r.checkpoint()))
        assert verify_chain(events, checkpoint, newest=bounds[1]) is None
        assert len(events) <= 2 * 5
    assert [e.sequence for e in await store.read(lambda r: r.events(3, 2))] == [1003, 1004]


async def test_old_revisions_go_unless_something_present_refers_to_them(store: Store):
    row = deployment(active_revision=3, last_revision=4)
    running = update("u-1", revision=6, from_revision=5)
    await store.transact(
        with_deployment(
            lambda t: t.put_deployment(row),
            lambda t: t.put_enclave(enclave(revision=2)),
            lambda t: t.put_update(running),
        )
    )
    for number in range(1, REVISIONS_KEPT + 9):
        await store.transact(lambda t, n=number: t.put_revision(revision(n)))
    kept = [row.number for row in await store.read(lambda r: r.revisions(WEB))]
    newest = range(REVISIONS_KEPT + 8, 8, -1)
    assert kept == [*newest, 6, 5, 4, 3, 2]


async def test_the_newest_hundred_updates_and_one_that_runs_are_kept(store: Store):
    await store.transact(with_deployment(lambda t: t.put_update(update("u-runs"))))
    await store.transact(lambda t: t.put_deployment(deployment("other")))
    await store.transact(lambda t: t.put_update(finished_update("other-1", "other")))
    for number in range(UPDATES_KEPT + 3):
        await store.transact(lambda t, n=number: t.put_update(finished_update(f"u-{n}")))
    kept = [row.id for row in await store.read(lambda r: r.updates(WEB, limit=1000))]
    assert kept == [*(f"u-{n}" for n in range(UPDATES_KEPT + 2, 2, -1)), "u-runs"]
    assert len(await store.read(lambda r: r.updates(DeploymentName("other")))) == 1
