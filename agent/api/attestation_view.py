"""Evidence as it is answered: the guest's bytes untouched, our verdict beside them."""

from __future__ import annotations

import msgspec

from agent.attestation.expected import Expected
from agent.attestation.port import Check, Evidence, Verdict
from agent.wire.answers import (
    AttestationAnswer,
    AttestationCheck,
    AttestationVerdict,
    CollateralView,
)

_NULL = b"null"


def attestation_answer(found: Evidence) -> AttestationAnswer:
    """What the guest sent stands in it byte for byte, if it is JSON; else null does."""
    return AttestationAnswer(
        evidence=msgspec.Raw(_json(found.document)),
        verdict=_verdict(found.verdict),
        expected=_expected(found.expected),
        nonce=found.nonce,
        spki_sha256=found.spki_sha256,
        observed_at=found.observed_at,
        edition=msgspec.UNSET if found.edition is None else found.edition,
    )


def _json(document: bytes | None) -> bytes:
    """A guest must not be able to write our own members."""
    if document is None:
        return _NULL
    try:
        msgspec.json.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _NULL
    return document


def _verdict(verdict: Verdict) -> AttestationVerdict:
    return AttestationVerdict(
        accepted=verdict.attested is True,
        checks=_checks(verdict.checks),
        simulated=verdict.simulated,
        stricter=_checks(verdict.stricter) or msgspec.UNSET,
        collateral=[
            CollateralView(kind=one.kind, name=one.name, issued=one.issued, until=one.until)
            for one in verdict.collateral
        ]
        or msgspec.UNSET,
    )


def _checks(checks: tuple[Check, ...]) -> list[AttestationCheck]:
    return [
        AttestationCheck(
            code=check.code,
            passed=check.passed,
            detail=check.detail,
            checked=msgspec.UNSET if check.checked else False,
        )
        for check in checks
    ]


def _expected(expected: Expected) -> dict[str, str | int | None]:
    def shown(data: bytes | None) -> str | None:
        return None if data is None else data.hex()

    fixed: dict[str, str | int | None] = {
        "snp_policy": expected.snp_policy,
        "guest_svn": expected.guest_svn,
        "id_key_digest": shown(expected.id_key_digest),
        "author_key_digest": shown(expected.author_key_digest),
        "gpu_mode": expected.gpu_mode,
        "mrtd": shown(expected.mrtd),
        "rtmr0": shown(expected.rtmr0),
        "mrconfigid": shown(expected.mrconfigid) if any(expected.mrconfigid) else None,
    }
    return {
        "snp_measurement": shown(expected.snp_measurement),
        "rtmr1": shown(expected.rtmr1),
        "rtmr2": shown(expected.rtmr2),
        "host_data": shown(expected.host_data),
        "gpus": expected.gpus,
        # A launch in one measured file fixes more, and so does a board.
        **{name: value for name, value in fixed.items() if value is not None},
    }
