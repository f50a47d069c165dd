"""The TD report inside a quote: every field, and nothing but cutting. Pure.

Source: Intel TDX DCAP Quoting Library API, A.3.2 (TD Quote Body 1.0) and A.4 (1.5).
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.attestation.cursor import Cursor
from agent.attestation.tdx.registers import TdxRegisters

BODY_10_BYTES = 584
BODY_15_BYTES = 648

_FIELDS_10 = (
    ("tee_tcb_svn", 16),
    ("mrseam", 48),
    ("mrsignerseam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mrtd", 48),
    ("mrconfigid", 48),
    ("mrowner", 48),
    ("mrownerconfig", 48),
    ("rtmr0", 48),
    ("rtmr1", 48),
    ("rtmr2", 48),
    ("rtmr3", 48),
    ("report_data", 64),
)
_FIELDS_15 = (*_FIELDS_10, ("tee_tcb_svn2", 16), ("mrservicetd", 48))


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """The fields as the TDX module wrote them. The last two: None in a 1.0 report."""

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmr0: bytes
    rtmr1: bytes
    rtmr2: bytes
    rtmr3: bytes
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mrservicetd: bytes | None = None

    @property
    def registers(self) -> TdxRegisters:
        """The five measurement registers."""
        return TdxRegisters(self.mrtd, self.rtmr0, self.rtmr1, self.rtmr2, self.rtmr3)


def parse_report(body: bytes) -> TdReport:
    """Cut a body whose size was checked: 584 bytes (1.0) or 648 (1.5)."""
    cursor = Cursor(body, what="the TD report", code="tdx_quote_truncated")
    fields = _FIELDS_15 if len(body) == BODY_15_BYTES else _FIELDS_10
    report = TdReport(**{name: cursor.take(size, name) for name, size in fields})
    cursor.end("tdx_quote_size")
    return report
