"""What this host knows of its machine, its launches and its devices; asked, learned and kept.

Invariants: what is learned is durable before the verdict that it was learned from is told, in one
transaction with what it was compared with. So a crash at any step leaves it learned or not, and of
two verdicts at once not both take what can be only one's. Evidence that is as it was costs no
transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import msgspec

from agent.attestation.origin import Chip, ChipSource, Origin
from agent.attestation.port import Check, Verdict
from agent.attestation.recognition import (
    CHIP_ID,
    Known,
    Launch,
    Recognition,
    machine_row,
    own_chips_told,
    recognise,
)
from agent.attestation.refused_chips import chip_to_accept, refused_chip, rows_to_change
from agent.errors import AgentError, describe
from agent.host.clock import Clock
from agent.host.threads import finish_in_thread
from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.model.evidence_edition import knows_machines
from agent.model.identity import (
    Identity,
    KnownDevices,
    KnownLaunch,
    KnownMachine,
    RefusedChip,
    known_processor,
)
from agent.model.ids import Bdf, DeploymentName
from agent.store.port import Reader, Store, Transaction

log = logging.getLogger(__name__)

OwnChips = Callable[[], Sequence[bytes]]
SerialAt = Callable[[Bdf], str | None]


def no_own_chips() -> Sequence[bytes]:
    """Of a host whose processors do not say who they are (TDX)."""
    return ()


def no_serial(_: Bdf) -> str | None:
    """Of a host that cannot tell one card from another."""
    return None


class Recogniser:
    """`machine`: the id of this machine. `own_chips`: asks its processors, raising AgentError
    where that cannot be done; `serial_at`: of the card at a place. Both may wait for hardware.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        machine: str,
        *,
        own_chips: OwnChips = no_own_chips,
        serial_at: SerialAt = no_serial,
        require_chip_id: bool = False,
    ) -> None:
        self._store = store
        self._clock = clock
        self._machine = machine
        self._own_chips = own_chips
        self._serial_at = serial_at
        self._require_chip_id = require_chip_id
        self._told: frozenset[str] | None = None
        self._as_before: dict[str, tuple[Origin, tuple[Check, ...]]] = {}  # by launch

    async def recognise(self, enclave: Enclave, verdict: Verdict, *, learn: bool) -> Verdict:
        """The verdict with what is known of its origin. `learn`: else nothing is remembered.

        Raises StoreError.
        """
        origin = verdict.origin
        if origin is None:
            return verdict
        admitted = verdict.attested is True
        good = admitted and not verdict.stricter
        before = self._as_before.get(enclave.launch_uuid)
        if good and before is not None and before[0] == origin:
            return msgspec.structs.replace(verdict, checks=(*verdict.checks, *before[1]))
        own, serials = await finish_in_thread(self._look, origin, enclave)

        def judge(tx: Reader) -> Recognition:
            found = recognise(
                origin,
                _launch(tx, enclave, serials),
                self._known(tx, own),
                self._clock.now(),
                good=good,
                admitted=admitted,
                require_chip_id=self._require_chip_id,
            )
            checks = (*verdict.checks, *found.checks)
            newest = refused_chip(origin, checks, self._machine, enclave.deployment)
            put, drop = rows_to_change(tx.identities(RefusedChip), newest, enclave.deployment)
            return replace(found, put=(*found.put, *put), drop=(*found.drop, *drop))

        def keep(tx: Transaction) -> Recognition:
            found = judge(tx)
            for row in found.put:
                _tell_another_chip(tx, row)
            for old in found.drop:
                tx.delete_identity(old)
            for row in found.put:
                tx.put_identity(row)
            return found

        found = await self._store.read(judge)
        if learn and (found.put or found.drop):
            found = await self._store.transact(keep)
            self._as_before.clear()  # what was nobody else's may be somebody's now
        elif good and not (found.put or found.drop) and _all_passed(found.checks):
            self._as_before[enclave.launch_uuid] = (origin, found.checks)
        lenient = found.foreign and not knows_machines(enclave.evidence_edition)
        return _recognised(verdict, found, lenient=lenient)

    async def chip_to_accept(self, name: DeploymentName) -> KnownMachine:
        """What is to be remembered if a person says that the processor is this machine's that the
        newest evidence of this deployment was refused for; it is not asked for again, since what
        was refused may be gone. Raises ChipNotAcceptedError, StoreError.
        """
        refused = await self._store.read(lambda tx: tx.identities(RefusedChip))
        own = await finish_in_thread(self._ask_processors)
        row = chip_to_accept(refused, self._machine, name, own)
        chip = Chip(source=ChipSource(row.source), value=row.chip)
        return machine_row(chip, self._machine, self._clock.now())

    def forget_launch(self, launch_uuid: str) -> None:
        """Keep nothing in memory of a launch that is over; the store's rows stay."""
        self._as_before.pop(launch_uuid, None)

    def compare_anew(self) -> None:
        """What was learned is another thing than before: somebody said so."""
        self._as_before.clear()

    def _look(
        self, origin: Origin, enclave: Enclave
    ) -> tuple[frozenset[str] | None, Mapping[Bdf, str]]:
        """What the hardware says; never on the event loop."""
        own = self._told if origin.chip is None else self._ask_processors()
        devices = (*enclave.gpus, *enclave.switches) if origin.devices else ()
        return own, {bdf: told for bdf in devices if (told := self._serial_at(bdf))}

    def _ask_processors(self) -> frozenset[str] | None:
        """Until they answer; never on the event loop. None: they do not say who they are."""
        if self._told is None:
            try:
                self._told = own_chips_told(self._own_chips())
            except AgentError as error:
                fields = {"error": describe(error)}
                log.warning("this host's processor does not say who it is", extra=fields)
        return self._told

    def _known(self, tx: Reader, own_chips: frozenset[str] | None) -> Known:
        return Known(
            machine=self._machine,
            own_chips=own_chips,
            machines=tx.identities(KnownMachine),
            launches=tx.identities(KnownLaunch),
            devices=tx.identities(KnownDevices),
            live=frozenset(row.launch_uuid for row in tx.enclaves()),
        )


def another_chip(tx: Reader, row: KnownMachine) -> EventDraft | None:
    """The event of remembering it in the place of another one; None: there is no other."""
    before = known_processor(tx.identities(KnownMachine), row.machine)
    if before is None or (before.source, before.chip) == (row.source, row.chip):
        return None
    return EventDraft(kind="chip", from_=before.chip, to=row.chip)


def _tell_another_chip(tx: Transaction, row: Identity) -> None:
    if isinstance(row, KnownMachine) and (event := another_chip(tx, row)) is not None:
        reason = "this host's own processor says that it is another one"
        tx.append(msgspec.structs.replace(event, reason=reason))


def _launch(tx: Reader, enclave: Enclave, serials: Mapping[Bdf, str]) -> Launch:
    places = tuple(sorted({*enclave.gpus, *enclave.switches}))
    uuids = {row.bdf: row.uuid for row in tx.known_gpus() if row.present and row.uuid}
    cards = {f"{bdf} serial": serial for bdf, serial in serials.items()}
    cards |= {f"{bdf} uuid": uuid for bdf in places if (uuid := uuids.get(bdf))}
    return Launch(uuid=enclave.launch_uuid, enclave=enclave.id, places=places, cards=cards)


def _all_passed(checks: Sequence[Check]) -> bool:
    return all(check.passed for check in checks)


def _recognised(verdict: Verdict, found: Recognition, *, lenient: bool) -> Verdict:
    """`lenient`: it was admitted before a machine was asked for; then that it is another one's is
    told as stricter, and not held against it.
    """
    stricter = tuple(
        check for check in found.checks if lenient and check.code == CHIP_ID and not check.passed
    )
    checks = tuple(check for check in found.checks if check not in stricter)
    return msgspec.structs.replace(
        verdict,
        attested=verdict.attested is True and _all_passed(checks),
        checks=(*verdict.checks, *checks),
        stricter=(*verdict.stricter, *stricter),
        disputed=found.disputed,
    )
