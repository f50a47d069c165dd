"""Whether evidence is of the machine, the launch and the devices that it should be of. Pure.

Verified evidence proves that some machine runs the release; this asks which. What was learned from
the first evidence that was believed is held against all that comes later, and what is one's own
may be nobody else's at the same time. What cannot be compared is said to be not checked.

Evidence of another machine or launch claims nothing here: a guest that passes on what another one
answers is refused, and takes nothing from that other one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.attestation.origin import Chip, ChipSource, Origin
from agent.attestation.port import Check, not_checked
from agent.attestation.recognition_devices import check_devices, learn_devices
from agent.model.clock import Instant
from agent.model.identity import (
    Identity,
    KnownDevices,
    KnownLaunch,
    KnownMachine,
    known_processor,
)
from agent.model.ids import Bdf, EnclaveId

CHIP_ID, REPORT_ID, KEY_ALONE = "chip_id", "report_id", "tls_key_alone"
_PAST_LAUNCHES_KEPT = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Whose evidence it should be. `places`: of its GPUs and switches, sorted. `cards`: what the
    host can tell of the cards there, as in `KnownDevices`.
    """

    uuid: str
    enclave: EnclaveId
    places: tuple[Bdf, ...] = ()
    cards: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known at this moment. `machine`: this one's id. `own_chips`: of its processors, as
    they say themselves, in hex; None where they do not. `live`: the launches of enclaves that are
    there.
    """

    machine: str
    own_chips: frozenset[str] | None
    machines: Sequence[KnownMachine]
    launches: Sequence[KnownLaunch]
    devices: Sequence[KnownDevices]
    live: frozenset[str]

    @property
    def machine_learned(self) -> KnownMachine | None:
        """What was learned on this machine, never what its store brought from another."""
        return known_processor(self.machines, self.machine)

    def owns(self, chip: Chip | KnownMachine) -> bool:
        """Whether the host's own processors say that it is one of them."""
        told, value = self.own_chips or (), chip.value if isinstance(chip, Chip) else chip.chip
        snp = chip.source == ChipSource.SNP
        return snp and bytes.fromhex(value).rstrip(b"\0").hex() in told

    def others(self, launch: Launch) -> list[KnownLaunch]:
        """Launches of other enclaves that are there now."""
        return [
            one
            for one in self.launches
            if one.launch_uuid in self.live and one.enclave != launch.enclave
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognition:
    """`checks`, in the order of print. `put`, `drop`: what is to be remembered and forgotten.

    `disputed`: enclaves that are no more believed than this one, since both have what can be only
    one's. `foreign`: the machine's own processors say that it is another one's.
    """

    checks: tuple[Check, ...]
    put: tuple[Identity, ...] = ()
    drop: tuple[Identity, ...] = ()
    disputed: tuple[EnclaveId, ...] = ()
    foreign: bool = False


def recognise(
    origin: Origin,
    launch: Launch,
    known: Known,
    now: Instant,
    *,
    good: bool,
    admitted: bool,
    require_chip_id: bool,
) -> Recognition:
    """`good`: every other check of the evidence passed, by today's policy; `admitted`: by the
    policy that its enclave was admitted under. What is not good teaches nothing.
    """
    chip = _chip(origin.chip, known, require=require_chip_id)
    report = _report_id(origin, launch, known)
    of_us = chip.passed and report.passed
    rivals = _rivals(origin, launch, known) if of_us else []
    key = _key_alone(origin, rivals)
    devices = check_devices(origin.devices, launch.places, launch.cards, known.devices, rivals)
    checks = (chip, report, key, *devices)
    put: list[Identity] = []
    drop: list[Identity] = []
    if of_us and admitted:
        put += _claim(origin, launch, known, now)
        drop += _past(known, launch)
    if good and all(check.passed for check in checks):
        chips = list(_learn_chip(origin.chip, known, now))
        put += chips
        drop += replaced(chips, known.machines)
        learned = learn_devices(origin.devices, launch.places, launch.cards, known.devices, now)
        put += learned.put
        drop += learned.drop
    return Recognition(
        checks=checks,
        put=tuple(put),
        drop=tuple(drop),
        disputed=tuple(sorted({one.enclave for one in rivals})) if admitted else (),
        foreign=not chip.passed and origin.chip is not None and known.own_chips is not None,
    )


def own_chips_told(chips: Sequence[bytes]) -> frozenset[str] | None:
    """As `Known.own_chips` has them; None where all are masked."""
    told = frozenset(chip.rstrip(b"\0").hex() for chip in chips if any(chip))
    return told or None


def masked(*, require: bool) -> Check:
    """Of evidence that names no processor."""
    why = "the evidence names no processor (its id is masked, or a VLEK signed)"
    if not require:
        return not_checked(f"{CHIP_ID}_not_checked", why)
    detail = f"{why}; attestation.require_chip_id asks for it"
    return Check(code=CHIP_ID, passed=False, detail=detail)


def _chip(chip: Chip | None, known: Known, *, require: bool) -> Check:
    """What the processors of the host say outweighs what was learned. Evidence of another kind of
    processor than before is of another one.
    """
    if chip is None:
        return masked(require=require)
    learned = known.machine_learned
    if known.own_chips is not None:
        same = known.owns(chip)
        said = "this host's own processor says the same" if same else _foreign(known.own_chips)
        return Check(code=CHIP_ID, passed=same, detail=f"{chip}: {said}")
    if learned is None:
        why = "nothing was known to compare it with; it is learned once it is believed"
        return not_checked(f"{CHIP_ID}_not_checked", f"{chip}: {why}")
    on = f"{learned.learned_at.wall:%Y-%m-%d}"
    if (learned.source, learned.chip) == (chip.source, chip.value):
        return Check(code=CHIP_ID, passed=True, detail=f"{chip}: as learned on {on}")
    detail = f"{chip}: on {on} it was {learned.source} {learned.chip}"
    return Check(code=CHIP_ID, passed=False, detail=detail)


def _foreign(own: frozenset[str]) -> str:
    return f"this host's own processors are {', '.join(sorted(own))}: it is of another machine"


def _report_id(origin: Origin, launch: Launch, known: Known) -> Check:
    found = origin.report_id
    if found is None:
        return not_checked(f"{REPORT_ID}_not_checked", "evidence of TDX names no launch")
    before = next((one for one in known.launches if one.launch_uuid == launch.uuid), None)
    if before is not None and before.report_id not in {None, found}:
        detail = f"report id {found}: evidence of this launch had {before.report_id} before"
        return Check(code=REPORT_ID, passed=False, detail=detail)
    same = (one for one in known.launches if one.report_id == found and one is not before)
    if (twin := next(same, None)) is not None:
        detail = f"report id {found} is that of another launch, of enclave {twin.enclave}"
        return Check(code=REPORT_ID, passed=False, detail=detail)
    told = "as before" if before else "the first of this launch, and of no other"
    return Check(code=REPORT_ID, passed=True, detail=f"report id {found}: {told}")


def _rivals(origin: Origin, launch: Launch, known: Known) -> list[KnownLaunch]:
    """Others that are there, with what can be only one's."""
    return [
        one
        for one in known.others(launch)
        if one.spki_sha256 == origin.spki_sha256 or set(one.devices) & set(origin.devices)
    ]


def _key_alone(origin: Origin, rivals: Sequence[KnownLaunch]) -> Check:
    sharing = [one.enclave for one in rivals if one.spki_sha256 == origin.spki_sha256]
    if not sharing:
        detail = "no other enclave that is there has its TLS key"
        return Check(code=KEY_ALONE, passed=True, detail=detail)
    detail = f"TLS key {origin.spki_sha256} is that of enclave {', '.join(sharing)}, too"
    return Check(code=KEY_ALONE, passed=False, detail=detail)


def _claim(origin: Origin, launch: Launch, known: Known, now: Instant) -> Iterator[KnownLaunch]:
    before = next((one for one in known.launches if one.launch_uuid == launch.uuid), None)
    row = KnownLaunch(
        launch_uuid=launch.uuid,
        enclave=launch.enclave,
        report_id=origin.report_id,
        spki_sha256=origin.spki_sha256,
        devices=origin.devices,
        first_at=before.first_at if before else now,
    )
    if row != before:
        yield row


def _past(known: Known, launch: Launch) -> list[KnownLaunch]:
    """The oldest of those that are over: a report id is looked for in the newest alone."""
    kept = known.live | {launch.uuid}
    over = [one for one in known.launches if one.launch_uuid not in kept]
    over.sort(key=lambda one: one.first_at.wall, reverse=True)
    return over[_PAST_LAUNCHES_KEPT:]


def _learn_chip(chip: Chip | None, known: Known, now: Instant) -> Iterator[KnownMachine]:
    """Also where the processor itself is asked: once it does not answer, this is what is known. Of
    several sockets the first that was seen stands for all.
    """
    learned = known.machine_learned
    if chip is None or (learned is not None and known.owns(learned)):
        return
    row = machine_row(chip, known.machine, now)
    if learned is None or (learned.source, learned.chip) != (row.source, row.chip):
        yield row


def replaced(rows: Sequence[KnownMachine], known: Iterable[KnownMachine]) -> list[KnownMachine]:
    """What is known of the machines of these rows, as other kinds of id: a machine has one."""
    return [
        one for one in known for row in rows if one.machine == row.machine and one.key != row.key
    ]


def machine_row(chip: Chip, machine: str, now: Instant) -> KnownMachine:
    """What is remembered of a machine whose evidence names this processor."""
    return KnownMachine(machine=machine, source=chip.source, chip=chip.value, learned_at=now)
