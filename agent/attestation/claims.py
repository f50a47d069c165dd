"""What verified evidence says: the values that policy judges. Pure, and one type a technology.

Who holds claims holds something that was signed by a root that is believed; whether what they
say is good enough is the policy's to say.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agent.attestation.origin import Chip, ChipSource
from agent.attestation.port import CollateralUsed
from agent.attestation.snp_report import SnpReport
from agent.attestation.snp_tcb import Product, Tcb

if TYPE_CHECKING:
    from agent.attestation.snp_crl import Crl
    from agent.attestation.tdx.claims import TdxClaims

_TURIN_CHIP_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """A SEV-SNP report whose signature, chain, TCB and chip agree.

    `valid_until`: the first end of a certificate or current revocation list. `crl`: the newest
    list that there is, current (`revocation_checked`) or not. `provider`: who had the VLEK made.
    `simulated`: the root is of the simulated processor of an installation. `collateral`: what
    vouched for it.
    """

    report: SnpReport
    product: Product
    current: Tcb
    reported: Tcb
    committed: Tcb
    launch: Tcb
    root_spki_sha256: str
    valid_until: dt.datetime
    crl: Crl | None
    revocation_checked: bool
    simulated: bool
    provider: str | None = None
    collateral: tuple[CollateralUsed, ...] = ()

    @property
    def chip(self) -> Chip | None:
        """None where the host masks it. Turin's has 8 bytes, which zeros follow."""
        raw = self.report.chip_id
        if not any(raw):
            return None
        short = self.product is Product.TURIN and not any(raw[_TURIN_CHIP_BYTES:])
        shown = raw[:_TURIN_CHIP_BYTES] if short else raw
        return Chip(source=ChipSource.SNP, value=shown.hex())

    @property
    def report_id(self) -> str | None:
        """As its processor named this launch."""
        return self.report.report_id.hex()

    @property
    def report_data(self) -> bytes:
        return self.report.report_data

    @property
    def firmware(self) -> str:
        """What runs below every guest of this host, and what its keys were derived from."""
        version, parts = self.report.current_firmware, (self.current, self.reported)
        return f"{version}; {'; '.join(map(str, parts))}"


Claims: TypeAlias = "SnpClaims | TdxClaims"
