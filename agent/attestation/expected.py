"""What evidence is compared with: what the release and this very question to the guest fix."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.model.release import Release

NO_HOST_DATA = bytes(32)


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """`report_data` None: nothing was asked that the evidence could answer to (documents v2).

    Host data is zero with firmware of the OVMF kind; clients require it. A measurement that is
    None is not known, and then no evidence is good enough; `rtmr1` and `rtmr2` are those of TDX.
    """

    snp_measurement: bytes | None = None
    rtmr1: bytes | None = None
    rtmr2: bytes | None = None
    host_data: bytes = NO_HOST_DATA
    report_data: bytes | None = None
    gpus: int = 0


ExpectedSource = Callable[[Release], Expected]


def expected_of(release: Release) -> Expected:
    """From the manifest, whose measurements are hex and were checked when it was read."""
    snp, tdx = release.snp_measurement, release.tdx_measurement
    return Expected(
        snp_measurement=bytes.fromhex(snp) if snp else None,
        rtmr1=bytes.fromhex(tdx["rtmr1"]) if tdx else None,
        rtmr2=bytes.fromhex(tdx["rtmr2"]) if tdx else None,
        gpus=release.demand.gpus,
    )
