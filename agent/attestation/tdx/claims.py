"""What a verified TDX quote claims. Values only. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from agent.attestation.origin import Chip, ChipSource
from agent.attestation.port import CollateralUsed
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
    """Of the PCK certificate. The three flags: None where the certificate does not say.
    `instance`: the platform's id as a whole, where it has several packages; `ppid`: of one.
    """

    fmspc: bytes
    pce_id: bytes
    dynamic_platform: bool | None
    cached_keys: bool | None
    smt: bool | None
    ppid: bytes | None = None
    instance: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxClaims:
    """Every field is under signatures that hold. `tcb` None: collateral was not judged.

    `checked`, `judged`: what was verified of the quote and of the collateral, in order, in words
    for a verdict. `simulated`: under another root than Intel's. `collateral`: what was judged by.
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
    collateral: tuple[CollateralUsed, ...] = ()

    @property
    def chip(self) -> Chip | None:
        """What names the processor: ids of zeros name none."""
        platform = self.platform
        for source, value in (
            (ChipSource.INSTANCE, platform.instance),
            (ChipSource.PPID, platform.ppid),
        ):
            if value is not None and any(value):
                return Chip(source=source, value=value.hex())
        return None

    @property
    def report_id(self) -> str | None:
        """TDX names no launch."""
        return None

    @property
    def report_data(self) -> bytes:
        return self.report.report_data

    @property
    def firmware(self) -> str:
        """What runs below every guest of this host."""
        return f"module {self.report.mrseam.hex()}; TCB {self.report.tee_tcb_svn.hex()}"
