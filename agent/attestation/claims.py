"""What verified evidence says: the values that policy judges. Pure, and one type a technology.

Who holds claims holds something that was signed by a root that is believed; whether what they
say is good enough is the policy's to say.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from agent.attestation.snp_report import SnpReport
from agent.attestation.snp_tcb import Product, Tcb

if TYPE_CHECKING:
    from agent.attestation.snp_crl import Crl
    from agent.attestation.tdx.claims import TdxClaims


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpClaims:
    """A SEV-SNP report whose signature, chain, TCB and chip agree.

    `valid_until`: the first end of a certificate or current revocation list. `crl`: the newest
    list that there is, current (`revocation_checked`) or not. `provider`: who had the VLEK made.
    `simulated`: the root is of the simulated processor of an installation.
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

    @property
    def report_data(self) -> bytes:
        return self.report.report_data

    @property
    def firmware(self) -> str:
        """What runs below every guest of this host, and what its keys were derived from."""
        version, parts = self.report.current_firmware, (self.current, self.reported)
        return f"{version}; {'; '.join(map(str, parts))}"


Claims: TypeAlias = "SnpClaims | TdxClaims"
