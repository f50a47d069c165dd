"""Whether the evidence of what runs would be good enough by another file or a newer version.

The running agent is asked for what it saw last; it is judged here, by this very version, with the
collateral that lies in the state directory. Nothing is asked of a vendor or written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from agent.attestation.evidence import EvidenceError
from agent.attestation.expected import Expected
from agent.attestation.fetch import Fetched
from agent.attestation.port import NotYetError, Verdict
from agent.attestation.verifier import Endorser, Verifier
from agent.cli.exits import Exit, Failure
from agent.config import Config
from agent.model.evidence_edition import EVIDENCE_EDITION, FIRST_EVIDENCE_EDITION
from agent.wire.answers import AttestationAnswer

if TYPE_CHECKING:
    from agent.attestation.collateral import Endorsements, PcsResponse
    from agent.attestation.document import CpuKind, DeviceItem

_HEX_FIELDS = frozenset(
    {"snp_measurement", "rtmr1", "rtmr2", "host_data", "id_key_digest", "author_key_digest"}
    | {"mrtd", "rtmr0", "mrconfigid"}
)


def tell_running(config: Config) -> bool:
    """Print a line an enclave; whether all that give evidence would be admitted."""
    from agent.cli.client import segment
    from agent.cli.session import session
    from agent.cli.text import safe
    from agent.wire.host_views import StatusView

    client = session().client()
    good = True
    for one in client.read("/status", StatusView).deployments:
        for enclave in one.enclaves:
            try:
                raw = client.read_bytes(f"/v1/enclaves/{segment(enclave.id)}/attestation")
            except Failure as failure:
                if failure.exit_code == Exit.UNREACHABLE:
                    raise
                click.echo(f"{safe(one.name)}: no evidence to judge: {safe(failure.message)}")
                continue
            answer = msgspec.json.decode(raw, type=AttestationAnswer)
            told, passes = asyncio.run(_told(config, answer))
            good = good and passes
            click.echo(f"{safe(one.name)}: {safe(told)}")
    return good


async def _told(config: Config, answer: AttestationAnswer) -> tuple[str, bool]:
    gate = _gate(config, simulated=answer.verdict.simulated)
    named = config.attestation.require_chip_id
    today = await _judged(gate, answer, EVIDENCE_EDITION, require_chip_id=named)
    if today.attested:
        return "would be admitted", True
    failed = "; ".join(f"{one.code}: {one.detail}" for one in today.checks if not one.passed)
    # An agent that does not tell it is older than editions are.
    edition = FIRST_EVIDENCE_EDITION if answer.edition is msgspec.UNSET else answer.edition
    own = await _judged(gate, answer, edition, require_chip_id=named)
    if own.attested:
        return (
            f"policy_stricter: keeps its traffic, and nothing new would be admitted so: {failed}",
            False,
        )
    return f"would lose its attestation: {failed}", False


async def _judged(
    gate: Verifier, answer: AttestationAnswer, edition: int, *, require_chip_id: bool
) -> Verdict:
    from agent.attestation.appraisal import refusal

    fetched = Fetched(bytes(answer.evidence), answer.spki_sha256)
    expected, nonce = expected_in(answer), bytes.fromhex(answer.nonce)
    try:
        verdict = await gate.judge(fetched, expected, answer.spki_sha256, nonce, edition)
        return _with_chip(verdict, require=require_chip_id)
    except EvidenceError as error:
        return Verdict(attested=False, checks=(refusal(error),))
    except NotYetError as error:
        check = refusal(EvidenceError(error.code, str(error)))
        return Verdict(attested=False, checks=(check,))


def _with_chip(verdict: Verdict, *, require: bool) -> Verdict:
    """Of what only the running agent can compare this can be seen here: that none is named."""
    from agent.attestation.recognition import masked

    if verdict.origin is None or verdict.origin.chip is not None or not require:
        return verdict
    checks = (*verdict.checks, masked(require=True))
    return msgspec.structs.replace(verdict, attested=False, checks=checks)


def _gate(config: Config, *, simulated: bool) -> Verifier:
    from agent.attestation.opening import open_verifier
    from agent.host.clock import RealClock

    clock = RealClock()
    if simulated:
        return open_verifier(config.attestation, clock, simulated_root=_simulated_root(config))
    from agent.attestation.collateral_cache.service import open_collateral

    collateral = msgspec.structs.replace(config.attestation.collateral, offline=True, listen=None)
    offline = msgspec.structs.replace(config.attestation, collateral=collateral)
    service = open_collateral(offline, state_dir=config.state_dir, clock=clock)
    return open_verifier(config.attestation, clock, endorser=_Reader(service.endorser))


def _simulated_root(config: Config) -> str | None:
    """Of the installation's simulated processor, if it has one: none is made here."""
    from agent.attestation.simulated_chain import open_chain
    from agent.host.clock import RealClock

    path = config.state_dir / "simulated-processor.pem"
    return open_chain(path, RealClock().now().wall).root_spki_sha256 if path.is_file() else None


class _Reader:
    """An endorser that remembers nothing of what it is shown: the state is the daemon's."""

    def __init__(self, endorser: Endorser) -> None:
        self._endorser = endorser

    async def endorsements(self, report: bytes) -> Endorsements | None:
        return await self._endorser.endorsements(report)

    async def revocation_lists(self, report: bytes, ark: bytes) -> tuple[bytes, ...]:
        return await self._endorser.revocation_lists(report, ark)

    async def intel(self, quote: bytes) -> tuple[PcsResponse, ...]:
        return await self._endorser.intel(quote)

    async def manifests(self, devices: Sequence[DeviceItem]) -> Mapping[str, bytes]:
        return await self._endorser.manifests(devices)

    async def seen(self, kind: CpuKind, evidence: bytes) -> None:
        """Nothing is written."""


def expected_in(answer: AttestationAnswer) -> Expected:
    """What the running agent held it against; a member that it does not tell is not compared."""
    known = {field.name for field in msgspec.structs.fields(Expected)}
    given = {
        name: bytes.fromhex(value) if name in _HEX_FIELDS and isinstance(value, str) else value
        for name, value in answer.expected.items()
        if name in known and value is not None
    }
    return msgspec.convert(given, Expected)
