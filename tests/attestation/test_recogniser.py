"""What is known of machine, launches and devices, in the store: learned once, durable, told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.attestation.origin import Chip, ChipSource, Origin
from agent.attestation.port import Check, ChipNotAcceptedError, Verdict
from agent.attestation.recogniser import Recogniser
from agent.host.sev import SevError, chip_ids
from agent.inventory.port import unsigned
from agent.inventory.quarantine import lift_quarantine
from agent.model.enclave import Enclave, Lifecycle
from agent.model.evidence_edition import FLOORS_EDITION
from agent.model.gpu import KnownGpu
from agent.model.identity import KnownDevices, KnownLaunch, KnownMachine
from agent.model.ids import Bdf, DeploymentName
from agent.store.port import Reader, Store, StoreError, Transaction
from agent.updates.admission.accept_chip import accept_chip
from agent.updates.orders import Caller
from simulator.manual_clock import ManualClock
from simulator.memory_store import MemoryStore
from simulator.rows import deployment, enclave
from tests.fakes.failing_store import FailingStore
from tests.fakes.played_sev import PlayedSev

ID, OTHER_ID = b"\xaa" * 64, b"\xbb" * 64
GPU = Bdf("0000:41:00.0")
WEB = DeploymentName("web")
ROW = enclave(lifecycle=Lifecycle.RUNNING, gpus=(GPU,))
API = enclave(
    "bbbbbbbb",
    "api",
    lifecycle=Lifecycle.RUNNING,
    launch_uuid="00000000-0000-4000-8000-000000000002",
)


def good(chip: bytes | None = ID, **changes: Any) -> Verdict:
    named = Chip(source=ChipSource.SNP, value=chip.hex()) if chip else None
    origin = Origin(chip=named, report_id="11" * 32, spki_sha256="5a" * 32)
    check = Check(code="snp_signature", passed=True, detail="signed")
    origin = msgspec.structs.replace(origin, **changes)
    return Verdict(attested=True, checks=(check,), origin=origin)


def failed(verdict: Verdict) -> list[str]:
    return [check.code for check in verdict.checks if not check.passed]


def unchecked(verdict: Verdict) -> list[str]:
    return [check.code for check in verdict.checks if not check.checked]


@pytest.fixture
async def store() -> MemoryStore:
    made = MemoryStore(ManualClock().now)

    def put(tx: Transaction) -> None:
        for row in (ROW, API):
            tx.put_deployment(deployment(row.deployment))
            tx.put_enclave(row)

    await made.transact(put)
    return made


def recogniser(store: Store, machine: str = "machine-1", **changes: Any) -> Recogniser:
    return Recogniser(store, ManualClock(), machine, **changes)


def asking(sev: PlayedSev, tmp_path: Path) -> Callable[[], Sequence[bytes]]:
    device = tmp_path / "sev"
    device.touch()
    return lambda: chip_ids(device, sev)


class Counting:
    """A store that tells how often it was asked."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.reads = self.writes = 0

    async def read(self, work: Callable[[Reader], Any]) -> Any:
        self.reads += 1
        return await self.inner.read(work)

    async def transact(self, work: Callable[[Transaction], Any]) -> Any:
        self.writes += 1
        return await self.inner.transact(work)


async def test_the_secure_processor_is_asked_once_and_its_word_decides(
    store: MemoryStore, tmp_path: Path
) -> None:
    sev = PlayedSev(OTHER_ID + ID)
    known = recogniser(store, own_chips=asking(sev, tmp_path))
    for _ in range(3):
        verdict = await known.recognise(ROW, good(), learn=True)
        assert (verdict.attested, failed(verdict), unchecked(verdict)) == (True, [], [])
    assert sev.asked == 2, "how long, then what"
    moved = await known.recognise(ROW, good(b"\xcc" * 64), learn=True)
    assert (moved.attested, failed(moved)) == (False, ["chip_id"])


async def test_a_processor_that_does_not_answer_is_asked_again_and_meanwhile_one_learns(
    store: MemoryStore, tmp_path: Path
) -> None:
    def absent() -> Sequence[bytes]:
        raise SevError("/dev/sev cannot be opened: No such file or directory")

    known = recogniser(store, own_chips=absent)
    assert unchecked(await known.recognise(ROW, good(), learn=True)) == ["chip_id_not_checked"]
    assert failed(await known.recognise(ROW, good(OTHER_ID), learn=True)) == ["chip_id"]
    told = recogniser(store, own_chips=asking(PlayedSev(OTHER_ID), tmp_path))
    verdict = await told.recognise(ROW, good(OTHER_ID), learn=True)
    assert verdict.attested, "its own word outweighs what was learned"
    (event,) = [one for one in await store.read(lambda tx: tx.events(0)) if one.kind == "chip"]
    assert (event.from_, event.to) == (ID.hex(), OTHER_ID.hex())


async def test_what_was_learned_survives_the_agent_and_not_the_move_of_its_disk(
    store: MemoryStore,
) -> None:
    await recogniser(store).recognise(ROW, good(), learn=True)
    again = await recogniser(store).recognise(ROW, good(OTHER_ID), learn=True)
    assert failed(again) == ["chip_id"]
    cloned = recogniser(store, "machine-2")
    verdict = await cloned.recognise(ROW, good(OTHER_ID), learn=True)
    assert (verdict.attested, unchecked(verdict)) == (True, ["chip_id_not_checked"])


async def test_what_others_ask_teaches_nothing(store: MemoryStore) -> None:
    verdict = await recogniser(store).recognise(ROW, good(), learn=False)
    assert verdict.attested
    for kind in (KnownMachine, KnownLaunch, KnownDevices):
        assert await store.read(lambda tx, of=kind: tx.identities(of)) == []


async def test_evidence_as_before_costs_nothing_until_something_else_is_learned(
    store: MemoryStore,
) -> None:
    counting = Counting(store)
    known = recogniser(counting)  # type: ignore[arg-type]
    for _ in range(2):
        await known.recognise(ROW, good(), learn=True)
    before = (counting.reads, counting.writes)
    verdict = await known.recognise(ROW, good(), learn=True)
    assert (counting.reads, counting.writes) == before
    assert [check.code for check in verdict.checks][1:] == [
        "chip_id",
        "report_id",
        "tls_key_alone",
    ]
    thief = await known.recognise(API, good(report_id="22" * 32), learn=True)
    assert (failed(thief), thief.disputed) == (["tls_key_alone"], (ROW.id,))
    assert failed(await known.recognise(ROW, good(), learn=True)) == ["tls_key_alone"]


@pytest.mark.parametrize("after", [False, True])
async def test_a_crash_at_the_commit_leaves_it_learned_or_not(
    store: MemoryStore, after: bool
) -> None:
    failing = FailingStore(store)
    failing.fail_commit(1, StoreError("the power is cut"), after=after)
    with pytest.raises(StoreError):
        await recogniser(failing).recognise(ROW, good(), learn=True)
    (kept,) = await store.read(lambda tx: tx.identities(KnownLaunch)) or [None]
    assert (kept is not None) is after
    again = recogniser(store)
    assert (await again.recognise(ROW, good(), learn=True)).attested
    assert failed(await again.recognise(ROW, good(OTHER_ID), learn=True)) == ["chip_id"]
    thief = await again.recognise(API, good(report_id="22" * 32), learn=True)
    assert failed(thief) == ["tls_key_alone"]


async def test_what_was_admitted_before_machines_were_asked_for_keeps_serving_and_is_told(
    store: MemoryStore, tmp_path: Path
) -> None:
    known = recogniser(store, own_chips=asking(PlayedSev(OTHER_ID), tmp_path))
    before = msgspec.structs.replace(ROW, evidence_edition=FLOORS_EDITION)
    verdict = await known.recognise(before, good(), learn=True)
    assert (verdict.attested, [one.code for one in verdict.stricter]) == (True, ["chip_id"])
    assert await store.read(lambda tx: tx.identities(KnownMachine)) == []
    today = await known.recognise(ROW, good(), learn=True)
    assert (today.attested, today.stricter) == (False, ())


async def test_what_the_configuration_asks_for_is_refused_whenever_it_was_admitted(
    store: MemoryStore,
) -> None:
    before = msgspec.structs.replace(ROW, evidence_edition=FLOORS_EDITION)
    known = recogniser(store, require_chip_id=True)
    verdict = await known.recognise(before, good(None), learn=True)
    assert (verdict.attested, failed(verdict)) == (False, ["chip_id"])


async def test_a_change_is_accepted_by_a_person_and_chained(store: MemoryStore) -> None:
    known = recogniser(store)
    await known.recognise(ROW, good(), learn=True)
    with pytest.raises(ChipNotAcceptedError, match="no evidence of web was refused"):
        await known.chip_to_accept(WEB)
    assert failed(await known.recognise(ROW, good(OTHER_ID), learn=True)) == ["chip_id"]
    known = recogniser(store)  # a restart of the agent, after which its enclave may be gone
    row = await known.chip_to_accept(WEB)
    caller = Caller(name="local:0")
    change = await store.transact(lambda tx: accept_chip(tx, WEB, row, caller))
    known.compare_anew()
    assert (change.old, change.new) == (ID.hex(), OTHER_ID.hex())
    assert (await known.recognise(ROW, good(OTHER_ID), learn=True)).attested
    (event,) = [one for one in await store.read(lambda tx: tx.events(0)) if one.kind == "chip"]
    assert (event.from_, event.to, event.actor) == (ID.hex(), OTHER_ID.hex(), "local:0")


async def test_nobody_s_word_outweighs_the_processor_s_own(
    store: MemoryStore, tmp_path: Path
) -> None:
    known = recogniser(store, own_chips=asking(PlayedSev(ID), tmp_path))
    await known.recognise(ROW, good(OTHER_ID), learn=True)
    sev = PlayedSev(ID)
    for again in (known, recogniser(store, own_chips=asking(sev, tmp_path))):
        with pytest.raises(ChipNotAcceptedError, match="processor's own"):
            await again.chip_to_accept(WEB)
    assert sev.asked == 2, "a restarted agent asks before it takes a word"


async def test_evidence_that_is_bad_otherwise_is_not_accepted_for_its_chip(
    store: MemoryStore,
) -> None:
    known = recogniser(store)
    await known.recognise(ROW, good(), learn=True)
    wrong = Check(code="snp_measurement", passed=False, detail="another image")
    bad = msgspec.structs.replace(good(OTHER_ID), attested=False, checks=(wrong,))
    await known.recognise(ROW, bad, learn=True)
    with pytest.raises(ChipNotAcceptedError, match="other reasons, too: snp_measurement"):
        await recogniser(store).chip_to_accept(WEB)


async def test_the_newest_evidence_says_whether_there_is_a_chip_to_accept(
    store: MemoryStore,
) -> None:
    counting = Counting(store)
    known = recogniser(counting)  # type: ignore[arg-type]
    await known.recognise(ROW, good(), learn=True)
    await known.recognise(ROW, good(OTHER_ID), learn=False)
    with pytest.raises(ChipNotAcceptedError, match="no evidence of web was refused"):
        await known.chip_to_accept(WEB)
    await known.recognise(ROW, good(OTHER_ID), learn=True)
    before = counting.writes
    await known.recognise(ROW, good(OTHER_ID), learn=True)
    assert counting.writes == before, "the same refusal is written once"
    with pytest.raises(ChipNotAcceptedError, match="no evidence of web was refused"):
        await recogniser(store, "machine-2").chip_to_accept(WEB)
    await recogniser(store).recognise(ROW, good(), learn=True)
    with pytest.raises(ChipNotAcceptedError, match="no evidence of web was refused"):
        await recogniser(store).chip_to_accept(WEB)


def gpu_row(uuid: str | None = None) -> KnownGpu:
    return KnownGpu(key=uuid or "at:slot", bdf=GPU, location="slot", uuid=uuid)


async def learn_gpu(known: Recogniser, row: Enclave = ROW, device: str = "g1") -> Verdict:
    return await known.recognise(row, good(devices=(device,)), learn=True)


async def test_a_gpu_is_learned_and_a_card_that_the_host_tells_from_it_is_learned_anew(
    store: MemoryStore,
) -> None:
    serials = {GPU: "s1"}
    known = recogniser(store, serial_at=serials.get)
    assert (await learn_gpu(known)).attested
    assert failed(await learn_gpu(known, device="g2")) == ["gpu_identity"]
    serials[GPU] = "s2"
    assert (await learn_gpu(known, device="g2")).attested
    assert failed(await learn_gpu(known)) == ["gpu_identity"]


async def test_what_nvml_said_of_a_card_tells_it_from_another_too(store: MemoryStore) -> None:
    known = recogniser(store)
    await store.transact(lambda tx: tx.put_known_gpu(gpu_row("GPU-1")))
    assert (await learn_gpu(known)).attested
    await store.transact(lambda tx: tx.delete_known_gpu("GPU-1"))
    await store.transact(lambda tx: tx.put_known_gpu(gpu_row()))
    assert failed(await learn_gpu(known, device="g2")) == ["gpu_identity"], "it is not known now"
    await store.transact(lambda tx: tx.put_known_gpu(gpu_row("GPU-2")))
    await store.transact(lambda tx: tx.delete_known_gpu("at:slot"))
    assert (await learn_gpu(known, device="g2")).attested


async def test_a_place_that_a_person_releases_is_learned_anew(store: MemoryStore) -> None:
    known = recogniser(store)
    await store.transact(lambda tx: tx.put_known_gpu(gpu_row()))
    await learn_gpu(known)
    await store.transact(lambda tx: lift_quarantine(tx, GPU, "local:0", unsigned))
    assert (await learn_gpu(known, device="g2")).attested
    events = await store.read(lambda tx: tx.events(0))
    assert [(one.kind, one.gpu, one.actor) for one in events] == [("gpu_identity", GPU, "local:0")]
