"""Whether a launch's GPUs and switches are those that were at its places before. Pure.

Evidence does not say where a device is. So a set of devices belongs to a set of places: exact for
one device, and for several as far as the sets go. Sets that hold one another are compared, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.attestation.port import Check, not_checked
from agent.model.clock import Instant
from agent.model.identity import Identity, KnownDevices, KnownLaunch
from agent.model.ids import Bdf

DEVICES, DEVICES_ALONE = "gpu_identity", "gpu_alone"


@dataclass(slots=True)
class Learned:
    """What is to be remembered, and what is to be forgotten."""

    put: list[Identity] = field(default_factory=list)
    drop: list[Identity] = field(default_factory=list)


def check_devices(
    devices: Sequence[str],
    places: tuple[Bdf, ...],
    cards: Mapping[str, str],
    known: Sequence[KnownDevices],
    rivals: Sequence[KnownLaunch],
) -> Iterator[Check]:
    """No check where there is no device. `rivals`: launches of others that are there."""
    if not devices:
        return
    yield _alone(devices, rivals)
    yield _same(frozenset(devices), places, [one for one in known if stands(one, cards)])


def learn_devices(
    devices: tuple[str, ...],
    places: tuple[Bdf, ...],
    cards: Mapping[str, str],
    known: Sequence[KnownDevices],
    now: Instant,
) -> Learned:
    """Sets with a card that was replaced are forgotten; a set that is not known is learned."""
    learned = Learned(drop=[one for one in known if not stands(one, cards)])
    if not devices or not places:
        return learned
    mine = next((one for one in known if one.places == places and stands(one, cards)), None)
    told = {**(mine.cards if mine else {}), **cards}
    if mine is None or mine.cards != told:
        since = mine.learned_at if mine else now
        row = KnownDevices(places=places, devices=devices, cards=told, learned_at=since)
        learned.put.append(row)
        learned.drop = [one for one in learned.drop if one.key != row.key]
    return learned


def stands(row: KnownDevices, cards: Mapping[str, str]) -> bool:
    """Whether the host tells of no other card at its places; what it cannot tell is the same."""
    return all(cards.get(name, card) == card for name, card in row.cards.items())


def _alone(devices: Sequence[str], rivals: Sequence[KnownLaunch]) -> Check:
    for one in rivals:
        if shared := sorted(set(devices) & set(one.devices)):
            detail = f"device {', '.join(shared)} is that of enclave {one.enclave}, too"
            return Check(code=DEVICES_ALONE, passed=False, detail=detail)
    detail = "no other enclave that is there has one of its devices"
    return Check(code=DEVICES_ALONE, passed=True, detail=detail)


def _same(
    devices: frozenset[str], places: tuple[Bdf, ...], known: Sequence[KnownDevices]
) -> Check:
    where, compared = frozenset(places), list[KnownDevices]()
    for one in known:
        theirs = frozenset(one.devices)
        inside, around = where <= frozenset(one.places), frozenset(one.places) <= where
        if not (inside or around):
            continue
        compared.append(one)
        if (inside and not devices <= theirs) or (around and not theirs <= devices):
            return Check(code=DEVICES, passed=False, detail=_changed(devices, one))
    if not compared:
        detail = f"{_listed(devices)}: nothing was known of {_listed(places)} to compare with"
        return not_checked(f"{DEVICES}_not_checked", detail)
    newest = max(one.learned_at.wall for one in compared)
    detail = f"the devices at {_listed(places)} are as learned on {newest:%Y-%m-%d}"
    return Check(code=DEVICES, passed=True, detail=detail)


def _changed(devices: frozenset[str], before: KnownDevices) -> str:
    return (
        f"at {_listed(before.places)} were {_listed(before.devices)}; "
        f"the evidence is of {_listed(devices)}"
    )


def _listed(values: Sequence[str] | frozenset[str]) -> str:
    return ", ".join(sorted(values))
