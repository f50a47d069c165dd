"""What is remembered of who gave evidence: the machine, its launches, the sets of its GPUs.

Learned from the first evidence that was believed, and held against all that comes later; beside
it, which other machine evidence was refused for. Values of evidence are in lower-case hex.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import msgspec

from agent.model.clock import Instant
from agent.model.ids import Bdf, DeploymentName, EnclaveId


class KnownMachine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processor that evidence of this host names, bound to the machine by whose store it is.

    `machine`: the host's id, keyed with its machine id, so that the store on another machine knows
    nothing. `source`: what kind of id `chip` is.
    """

    machine: str
    source: str
    chip: str
    learned_at: Instant

    @property
    def key(self) -> str:
        """By which a row replaces another of its kind; so with the others."""
        return f"{self.machine}/{self.source}"


def known_processor(rows: Iterable[KnownMachine], machine: str) -> KnownMachine | None:
    """What names the processor of this machine, whatever kind of id it is; the newest counts."""
    mine = (one for one in rows if one.machine == machine)
    return max(mine, key=lambda one: one.learned_at.wall, default=None)


class KnownLaunch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One start of a VM, by evidence. `report_id`: what its processor named it; None where that
    names none. `spki_sha256`: the TLS key that its newest evidence binds. `devices`: the keys that
    were provisioned into its GPUs and switches, sorted.
    """

    launch_uuid: str
    enclave: EnclaveId
    report_id: str | None
    spki_sha256: str
    devices: tuple[str, ...]
    first_at: Instant

    @property
    def key(self) -> str:
        return self.launch_uuid


class KnownDevices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose certificates the devices of a set of places have. Which of them is where is known for
    one alone. `cards`: what the host could tell of the cards: `BDF serial`, `BDF uuid`.
    """

    places: tuple[Bdf, ...]
    devices: tuple[str, ...]
    cards: dict[str, str]
    learned_at: Instant

    @property
    def key(self) -> str:
        return ",".join(self.places)


class RefusedChip(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processor that a deployment's newest evidence was refused for. `machine`, `source` and
    `chip` are as in `KnownMachine`; `otherwise`: codes of what else is wrong with that evidence.
    """

    machine: str
    deployment: DeploymentName
    source: str
    chip: str
    otherwise: tuple[str, ...]

    @property
    def key(self) -> str:
        return self.deployment


Identity: TypeAlias = KnownMachine | KnownLaunch | KnownDevices | RefusedChip
