"""`scripts/verify-evidence FILE`: what a saved document is worth, judged here and offline.

FILE is what `enclave-agent attest NAME -o json` printed, which says what it was held against, or a
guest's own answer, of which much can only be taken from itself: what was not held against anything
is told as not checked. It is judged as of the moment at which it was seen (a bare document: now),
with the collateral that it brings and that `--collateral` has, in the form of
`attestation.collateral.directory`.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.api.attestation_view import attestation_answer
from agent.attestation.appraisal import read_document, refusal
from agent.attestation.collateral_cache.service import open_collateral
from agent.attestation.document import (
    MAX_DOCUMENT_BYTES,
    NONCE_BYTES,
    REPORT_DATA_BYTES,
    CpuKind,
    keys_in_report_data,
)
from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected, expected_of
from agent.attestation.fetch import Fetched
from agent.attestation.opening import open_verifier
from agent.attestation.port import Check, Evidence, NotYetError, Verdict, not_checked
from agent.attestation.verifier import Verifier
from agent.cli.against_running import expected_in
from agent.cli.attest_page import page
from agent.cli.screen import show, show_json
from agent.config import Config
from agent.config_file import load_config
from agent.errors import AgentError, describe
from agent.model.clock import Instant
from agent.model.evidence_edition import EVIDENCE_EDITION
from agent.model.release import Release
from agent.releases.manifest import read_release
from agent.strict_json import StrictJsonError, decode_strict_json
from agent.wire.answers import AttestationAnswer

GOOD, BAD, USAGE = 0, 1, 2
_MOST_BYTES = 4 * MAX_DOCUMENT_BYTES
_REPORT_DATA_AT = {CpuKind.SNP: 0x50, CpuKind.TDX: 568}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ORIGIN = "of which machine, launch and cards it is, only the host that has seen it can tell"


class UnusableError(AgentError):
    """What was given is no evidence, or does not fit together."""

    @property
    def code(self) -> str:
        return "unusable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A document, and what it is held against. `own`: checks that it would only pass by itself."""

    document: bytes
    nonce: bytes
    spki_sha256: str
    expected: Expected
    seen_at: dt.datetime | None
    own: tuple[Check, ...] = ()


@dataclass(frozen=True, slots=True)
class _At:
    """A clock that stands still."""

    moment: dt.datetime

    def now(self) -> Instant:
        return Instant(boot_id="none", boottime_s=0.0, wall=self.moment)


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    try:
        saved = read_saved(_bounded(given.file), given)
        config = load_config(given.config, {}) if given.config else Config()
        at = given.at or saved.seen_at or dt.datetime.now(dt.UTC)
        verdict = asyncio.run(judged(saved, config, at, given.collateral, given.simulated_root))
    except (AgentError, OSError) as error:
        told = f"{error.code}: {describe(error)}" if isinstance(error, AgentError) else str(error)
        print(f"verify-evidence: {told}", file=sys.stderr)
        return USAGE
    found = Evidence(
        document=saved.document,
        verdict=verdict,
        expected=saved.expected,
        nonce=saved.nonce.hex(),
        spki_sha256=saved.spki_sha256,
        observed_at=at,
    )
    _tell(found, as_json=given.output == "json")
    return GOOD if verdict.attested else BAD


def read_saved(raw: bytes, given: argparse.Namespace) -> Saved:
    """Raises UnusableError, EvidenceError for a document that cannot be read."""
    try:
        members = decode_strict_json(raw, dict[str, msgspec.Raw])
    except StrictJsonError as error:
        raise UnusableError(f"{given.file} is no JSON object: {error}") from error
    release = read_manifest(given.release) if given.release else None
    if members.keys() >= {"evidence", "verdict", "expected"}:
        return _of_an_answer(raw, release)
    return _of_a_guest(raw, release, nonce=given.nonce, spki_sha256=given.tls_key)


def read_manifest(path: Path) -> Release:
    """A release, by its manifest alone. Raises ReleaseError."""
    return read_release("saved", "v0", path.read_bytes())


def _of_an_answer(raw: bytes, release: Release | None) -> Saved:
    try:
        answer = decode_strict_json(raw, AttestationAnswer)
        nonce = bytes.fromhex(answer.nonce)
        expected = expected_in(answer)
    except (StrictJsonError, ValueError) as error:
        raise UnusableError(f"it is no answer of `attest -o json`: {error}") from error
    if bytes(answer.evidence) == b"null":
        raise UnusableError("the guest gave no document")
    return Saved(
        document=bytes(answer.evidence),
        nonce=nonce,
        spki_sha256=answer.spki_sha256,
        expected=expected_of(release) if release else expected,
        seen_at=answer.observed_at,
    )


def _of_a_guest(
    raw: bytes, release: Release | None, *, nonce: str | None, spki_sha256: str | None
) -> Saved:
    own = []
    if nonce is None:
        nonce = _nonce_of(raw)
        detail = f"it answers to the nonce that it says itself, {nonce}: give --nonce"
        own.append(not_checked("evidence_fresh", detail))
    document = read_document(raw, bytes.fromhex(nonce))
    if spki_sha256 is None:
        at = _REPORT_DATA_AT[document.cpu]
        given = document.report[at : at + REPORT_DATA_BYTES]
        keys = document.keys or keys_in_report_data(given)
        spki_sha256 = keys.tls_spki_sha256.hex()
        detail = f"it binds the TLS key {spki_sha256}, of whoever that is: give --tls-key"
        own.append(not_checked("tls_key", detail))
    return Saved(
        document=raw,
        nonce=bytes.fromhex(nonce),
        spki_sha256=spki_sha256,
        expected=expected_of(release) if release else Expected(),
        seen_at=None,
        own=tuple(own),
    )


class _Challenge(msgspec.Struct):
    nonce: str = ""


class _Envelope(msgspec.Struct):
    challenge: _Challenge = msgspec.field(default_factory=_Challenge)


def _nonce_of(raw: bytes) -> str:
    """Its own; zeros where it has none (version 2)."""
    try:
        nonce = decode_strict_json(raw, _Envelope).challenge.nonce
    except StrictJsonError:
        nonce = ""
    return nonce if _SHA256.fullmatch(nonce) else "00" * NONCE_BYTES


async def judged(
    saved: Saved,
    config: Config,
    at: dt.datetime,
    collateral: Path | None,
    simulated_root: str | None = None,
) -> Verdict:
    """By the real verifier; without what only its host could say. Asks nobody, keeps nothing."""
    with tempfile.TemporaryDirectory() as place:
        gate = _gate(config, at, collateral, Path(place), simulated_root)
        fetched = Fetched(saved.document, saved.spki_sha256)
        try:
            verdict = await gate.judge(
                fetched, saved.expected, saved.spki_sha256, saved.nonce, EVIDENCE_EDITION
            )
        except (EvidenceError, NotYetError) as error:
            verdict = Verdict(attested=False, checks=(_refused(error),))
    own = {check.code: check for check in saved.own}
    checks = tuple(own.get(one.code, one) if one.passed else one for one in verdict.checks)
    checks = (*checks, not_checked("origin_not_checked", _ORIGIN))
    return msgspec.structs.replace(verdict, checks=checks)


def _refused(error: EvidenceError | NotYetError) -> Check:
    if isinstance(error, EvidenceError):
        return refusal(error)
    return Check(code=error.code, passed=False, detail=f"{error} (--collateral has it not)")


def _gate(
    config: Config, at: dt.datetime, collateral: Path | None, place: Path, root: str | None
) -> Verifier:
    directory = collateral or config.attestation.collateral.directory
    sources = msgspec.structs.replace(
        config.attestation.collateral, directory=directory, offline=True, listen=None
    )
    attestation = msgspec.structs.replace(config.attestation, collateral=sources)
    clock = _At(at)
    if root is not None:
        return open_verifier(attestation, clock, simulated_root=root)
    service = open_collateral(attestation, state_dir=place, clock=clock)
    return open_verifier(attestation, clock, endorser=service.endorser, lists=service.endorser)


def _tell(found: Evidence, *, as_json: bool) -> None:
    answer = attestation_answer(found)
    if as_json:
        show_json(msgspec.json.encode(answer))
        return
    after = [
        ("TLS key", found.spki_sha256),
        ("nonce", found.nonce),
        ("judged as of", f"{found.observed_at:%Y-%m-%d %H:%M:%S} UTC"),
    ]
    show(page(answer.verdict, [], after))


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(_MOST_BYTES + 1)
    if len(raw) > _MOST_BYTES:
        raise UnusableError(f"{path} has more than {_MOST_BYTES} bytes")
    return raw


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/verify-evidence", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--config", type=Path, help="whose `attestation` is the policy")
    parser.add_argument("--collateral", type=Path, help="a directory of vendors' answers")
    parser.add_argument(
        "--release", type=Path, help="a tinfoil-deployment.json to hold it against"
    )
    parser.add_argument("--nonce", type=_sha256, help="that was asked with (a guest's own answer)")
    parser.add_argument("--tls-key", type=_sha256, help="SHA-256 of the SPKI that was shown")
    parser.add_argument("--at", type=_moment, help="judge as of this moment (ISO 8601)")
    parser.add_argument("--simulated-root", type=_sha256, help="believe this simulated processor")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    return parser


def _sha256(text: str) -> str:
    if _SHA256.fullmatch(text) is None:
        raise argparse.ArgumentTypeError("must be 64 digits of hex in lower case")
    return text


def _moment(text: str) -> dt.datetime:
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError("must be ISO 8601") from error
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
