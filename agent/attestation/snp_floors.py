"""The lowest security versions that AMD's bulletins endorse, in one table. Pure.

A microcode version can be compared only within one CPUID line, since it is the last byte of that
line's patch level; on Turin it is a number of its own. Where the line is not known (report version
2 does not say it, or a newer stepping) the product's other floors hold, and the microcode is not
compared, which a verdict says. A floor shows what a platform runs; whoever owns keys that were
extracted from an older one can sign that he runs a newer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.attestation.snp_tcb import Product


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """At least these; `microcode` None: not compared. `source`: the bulletin and its date."""

    source: str
    bootloader: int = 0
    tee: int = 0
    snp: int
    microcode: int | None = None
    fmc: int = 0

    def parts(self) -> dict[str, int]:
        """By the names that configuration and TCBs use."""
        return {
            "bootloader": self.bootloader,
            "tee": self.tee,
            "snp": self.snp,
            "microcode": self.microcode or 0,
            "fmc": self.fmc,
        }


# CVE-2024-56161: microcode whose signature anybody could make. The bulletin names the version of
# the SNP firmware that attests the mitigation, and the patch level; no bootloader, no TEE.
_SB_3019 = "AMD-SB-3019 of 2025-02-03"
# CVE-2025-0033: the RMP while it is initialised. On Turin the first that attests it is SPL 4.
_SB_3020 = "AMD-SB-3020 of 2025-10-13"

_PRODUCTS: Mapping[Product, Floors] = {
    Product.MILAN: Floors(source=_SB_3019, snp=24),
    Product.GENOA: Floors(source=_SB_3019, snp=23),
    Product.TURIN: Floors(source=_SB_3020, snp=4),
}
# (family, model, stepping) of a report of version 3 and later.
_LINES: Mapping[tuple[int, int, int], Floors] = {
    (0x19, 0x01, 1): Floors(source=_SB_3019, snp=24, microcode=0xDB),  # Milan
    (0x19, 0x01, 2): Floors(source=_SB_3019, snp=24, microcode=0x44),  # Milan-X
    (0x19, 0x11, 1): Floors(source=_SB_3019, snp=23, microcode=0x54),  # Genoa
    (0x19, 0x11, 2): Floors(source=_SB_3019, snp=23, microcode=0x4F),  # Genoa-X
    (0x19, 0xA0, 2): Floors(source=_SB_3019, snp=23, microcode=0x19),  # Bergamo, Siena
}


def endorsed_floors(product: Product, line: tuple[int, int, int] | None) -> Floors:
    """Of a processor of this product line. `line`: its CPUID, None where a report does not say."""
    return (_LINES.get(line) if line else None) or _PRODUCTS[product]
