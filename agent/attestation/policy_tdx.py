"""Whether a TDX quote says what the configuration and the release ask for. Pure.

Joins the configuration's words to the policy of quotes, and tells what was proved before it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from agent.attestation.expected import Expected
from agent.attestation.port import Check
from agent.attestation.tdx.claims import TdxClaims
from agent.attestation.tdx.platforms import EndorsedPlatform
from agent.attestation.tdx.policy import TdxPolicy, quote_checks, tcb_checks
from agent.config import TdxConfig, TdxPlatform


def check_quote(claims: TdxClaims, config: TdxConfig, expected: Expected) -> tuple[Check, ...]:
    """Every check of what is signed, before any collateral is looked at."""
    signed = Check(
        code="tdx_signature",
        passed=True,
        detail=f"version {claims.quote_version}; {'; '.join(claims.checked)}",
    )
    return (signed, *quote_checks(claims, policy_of(config, expected)))


def check_tcb(
    claims: TdxClaims, config: TdxConfig, expected: Expected, now: dt.datetime
) -> Iterator[Check]:
    """Every check of what Intel's collateral says; without it there is one, which fails."""
    if claims.tcb is not None:
        end = claims.tcb.valid_until
        yield Check(code="tdx_collateral", passed=True, detail="; ".join(claims.judged))
        yield Check(
            code="tdx_validity",
            passed=now <= end,
            detail=f"what vouches for it is valid until {end:%Y-%m-%d %H:%M} UTC",
        )
    yield from tcb_checks(claims, policy_of(config, expected))


def policy_of(config: TdxConfig, expected: Expected) -> TdxPolicy:
    """The policy that a configuration comes to; its hex was checked when it was read."""
    fmspcs = config.fmspcs
    return TdxPolicy(
        report_data=expected.report_data,
        rtmr1=expected.rtmr1,
        rtmr2=expected.rtmr2,
        release_platform=None
        if expected.mrtd is None or expected.rtmr0 is None
        else EndorsedPlatform("of the release", expected.mrtd, expected.rtmr0),
        mrconfigid=expected.mrconfigid,
        platforms=tuple(
            _endorsed(number, one)
            for number, one in enumerate(config.platforms, 1)
            if one.fits(expected.shape)
        ),
        mrseams=_bytes(config.mrseams),
        tcb_statuses=frozenset(config.tcb_statuses),
        refused_advisories=frozenset(config.refused_advisories),
        minimum_tcb_evaluation_data_number=config.minimum_tcb_evaluation_data_number,
        fmspcs=None if fmspcs is None else _bytes(fmspcs),
        allow_dynamic_platform=config.allow_dynamic_platform,
        allow_cached_keys=config.allow_cached_keys,
        allow_smt=config.allow_smt,
        minimum_tee_tcb_svn=bytes.fromhex(config.minimum_tee_tcb_svn),
        td_attributes=bytes.fromhex(config.td_attributes),
        xfam=bytes.fromhex(config.xfam),
    )


def _endorsed(number: int, platform: TdxPlatform) -> EndorsedPlatform:
    return EndorsedPlatform(
        platform.name or f"platform {number}",
        bytes.fromhex(platform.mrtd),
        bytes.fromhex(platform.rtmr0),
    )


def _bytes(values: tuple[str, ...]) -> frozenset[bytes]:
    return frozenset(map(bytes.fromhex, values))
