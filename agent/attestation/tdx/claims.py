"""What a verified TDX quote claims. Values only. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.attestation.tdx.report import TdReport
from agent.model.tcb_status import TcbStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbClaims:
    """How Intel's collateral judges the platform. `valid_until`: the first document to end.

    `evaluation_data_number`: the lower one of TCB info and QE identity.
    """

    status: TcbStatus
    advisory_ids: tuple[str, ...]
    tcb_date: datetime
    evaluation_data_number: int
    valid_until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformClaims:
    """Of the PCK certificate. The three flags: None where the certificate does not say."""

    fmspc: bytes
    pce_id: bytes
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims:
    """Every field is under signatures that hold. `tcb` None: collateral was not judged.

    `checked`, `judged`: what was verified of the quote and of the collateral, in order, in words
    for a verdict. `simulated`: under another root than Intel's.
    """

    quote_version: int
    qe_vendor_id: bytes
    user_data: bytes
    report: TdReport
    platform: PlatformClaims
    tcb: TcbClaims | None
    checked: tuple[str, ...]
    simulated: bool
    judged: tuple[str, ...] = ()

    @property
    def report_data(self) -> bytes:
        return self.report.report_data

    @property
    def firmware(self) -> str:
        """What runs below every guest of this host."""
        return f"module {self.report.mrseam.hex()}; TCB {self.report.tee_tcb_svn.hex()}"
