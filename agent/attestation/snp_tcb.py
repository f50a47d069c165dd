"""AMD's product lines and the layouts of a TCB version. Pure.

Source: SEV Secure Nested Paging Firmware ABI (56860), TCB_VERSION; the layout differs from
family 1Ah (Turin) on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.attestation.evidence import EvidenceError

TCB_BYTES = 8


class Product(StrEnum):
    """What a root speaks for. Bergamo and Siena are of the Genoa line."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class Signer(StrEnum):
    """Which key signed: the chip's own, or one that a cloud provider loaded into it."""

    VCEK = "vcek"
    VLEK = "vlek"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security versions of the parts of the TCB. `fmc`: on Turin only."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def parts(self) -> dict[str, int]:
        """By the names that configuration and certificates' extensions use."""
        named = {
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode,
        }
        return named if self.fmc is None else {"fmc": self.fmc, **named}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.parts().items())


_FAMILY_19H, _FAMILY_1AH = 0x19, 0x1A
_MODELS = (
    (_FAMILY_19H, range(0x10), Product.MILAN),
    (_FAMILY_19H, range(0x10, 0x20), Product.GENOA),
    (_FAMILY_19H, range(0xA0, 0xB0), Product.GENOA),  # Bergamo, Siena
    (_FAMILY_1AH, range(0x20), Product.TURIN),
)


def product_of(family: int, model: int) -> Product:
    """The product line of a processor. Raises EvidenceError `product_unknown`."""
    for known, models, product in _MODELS:
        if family == known and model in models:
            return product
    raise EvidenceError(
        "product_unknown", f"family {family:#x}, model {model:#x} is no product that we know"
    )


def decode_tcb(raw: bytes, product: Product, what: str) -> Tcb:
    """Eight bytes as they stand in a report. Raises EvidenceError `report_reserved`."""
    if product is Product.TURIN:
        fmc, bootloader, tee, snp = raw[:4]
        reserved = raw[4:7]
    else:
        fmc, (bootloader, tee), snp = None, raw[:2], raw[6]
        reserved = raw[2:6]
    if any(reserved):
        raise EvidenceError("report_reserved", f"{what}: its reserved bytes are not zero")
    return Tcb(bootloader=bootloader, tee=tee, snp=snp, microcode=raw[7], fmc=fmc)
