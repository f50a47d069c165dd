"""Of whom verified evidence is: the machine, the launch, the key and the devices. Values only."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ChipSource(StrEnum):
    """What kind of id names the processor. `INSTANCE`: of a platform of several packages."""

    SNP = "CHIP_ID"
    INSTANCE = "platform instance id"
    PPID = "PPID"


class Chip(msgspec.Struct, frozen=True, kw_only=True):
    """The processor's id, in hex."""

    source: ChipSource
    value: str

    def __str__(self) -> str:
        return f"{self.source} {self.value}"


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What evidence says under signatures that hold. `chip` None: none is told (masked, VLEK).

    `report_id`: the launch, by SEV-SNP; TDX names none. `spki_sha256`: the TLS key that it binds.
    `devices`: of each GPU and switch the SHA-256 of the key that was provisioned into it, sorted.
    """

    chip: Chip | None
    report_id: str | None
    spki_sha256: str
    devices: tuple[str, ...] = ()
