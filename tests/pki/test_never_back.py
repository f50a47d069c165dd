"""What replaces what is trusted: only what verifies, and only what is newer."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from agent.config import TlsConfig
from agent.pki.authority import Authority
from agent.pki.facts import ListMark, TrustError
from agent.pki.keeper import FleetCertificates
from agent.pki.names import host_uri
from agent.pki.request import install, request_certificate
from tests.fakes.fleet import DOMAIN, HOST, NotedProblems, Pki


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


@pytest.fixture
def tls(pki: Pki, tmp_path: Path) -> TlsConfig:
    """An agent that was enrolled."""
    host = tmp_path / "host"
    made = TlsConfig(
        certificate=host / "host.pem",
        key=host / "host.key",
        ca=host / "ca.pem",
        crl=host / "crl.pem",
        trust_domain=DOMAIN,
    )
    install(made, HOST, signed(pki.authority, made), pki.ca.read_text(), pki.crl.read_text())
    return made


def signed(by: Authority, tls: TlsConfig, days: float = 1) -> str:
    csr = x509.load_pem_x509_csr(request_certificate(tls, HOST).encode())
    made = by.issue(csr.public_key(), host_uri(DOMAIN, HOST), days=days)  # type: ignore[arg-type]
    return made.public_bytes(Encoding.PEM).decode()


def test_a_renewal_that_is_newer_and_verifies_is_taken(pki: Pki, tls: TlsConfig) -> None:
    renewed = signed(pki.authority, tls, days=2)
    install(tls, HOST, renewed, pki.ca.read_text(), None)
    assert tls.certificate.read_text() == renewed


@pytest.mark.parametrize("wrong", ["forged", "replayed", "ended", "not begun", "foreign list"])
def test_any_other_answer_changes_nothing_and_says_why(
    pki: Pki, tls: TlsConfig, tmp_path: Path, wrong: str
) -> None:
    before = {path: path.read_bytes() for path in tls.certificate.parent.iterdir()}
    forger = Pki(tmp_path / "forger")
    ca, crl = pki.ca.read_text(), None
    match wrong:
        case "forged":  # says the right name for the right key, beside the right authority
            given, told = signed(forger.authority, tls, days=9), "not issued by the authority"
            ca += forger.ca.read_text()
        case "replayed":
            given, told = tls.certificate.read_text(), "not newer"
        case "ended":
            given, told = signed(pki.authority, tls, days=-1), "not valid now"
        case "not begun":
            given, told = _later(pki, tls), "not valid now"
        case _:
            assert tls.crl is not None
            tls.crl.unlink()
            del before[tls.crl]
            given, told = signed(pki.authority, tls, days=2), "not signed by the authority"
            crl = forger.crl.read_text()
    with pytest.raises(TrustError, match=told):
        install(tls, HOST, given, ca, crl)
    assert {path: path.read_bytes() for path in tls.certificate.parent.iterdir()} == before


def _later(pki: Pki, tls: TlsConfig) -> str:
    csr = x509.load_pem_x509_csr(request_certificate(tls, HOST).encode())
    name = x509.UniformResourceIdentifier(host_uri(DOMAIN, HOST))
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "later")]))
        .issuer_name(pki.authority.certificate.subject)
        .public_key(csr.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([name]), critical=False)
        .sign(pki.authority.key, pki.authority.certificate.signature_hash_algorithm)  # type: ignore[arg-type]
    )
    return made.public_bytes(Encoding.PEM).decode()


async def test_an_older_list_is_refused_also_after_a_restart(pki: Pki, tmp_path: Path) -> None:
    tls, marks = pki.tls(), tmp_path / "marks.json"
    old, victim = pki.crl.read_bytes(), pki.observer()
    pki.revoke(victim)
    first = FleetCertificates(tls, HOST, NotedProblems(), marks=marks)
    await first.look()
    assert first.material is not None
    pki.crl.write_bytes(old)
    problems = NotedProblems()
    again = FleetCertificates(tls, HOST, problems, marks=marks)
    for keeper in (first, again):
        before = keeper.material
        await keeper.look()
        assert keeper.material is before
    assert "older than one that was read before" in problems.details["trust/unusable"]
    pki.authority.publish_crl()
    await again.look()
    assert again.material is not None
    assert again.material.facts.revoked
    assert problems.codes == {}


async def test_the_list_of_an_authority_that_is_still_trusted_cannot_be_left_out(
    pki: Pki, tmp_path: Path
) -> None:
    other, tls = Pki(tmp_path / "other"), pki.tls()
    alone = tls.ca.read_bytes(), pki.crl.read_bytes()
    tls.ca.write_bytes(alone[0] + other.ca.read_bytes())
    pki.crl.write_bytes(alone[1] + other.crl.read_bytes())
    problems = NotedProblems()
    trust = FleetCertificates(tls, HOST, problems)
    await trust.look()
    before = trust.material
    assert before is not None
    pki.crl.write_bytes(alone[1])
    await trust.look()
    assert trust.material is before
    assert "is not in it any more" in problems.details["trust/unusable"]
    tls.ca.write_bytes(alone[0])  # it is not trusted any more: its list may go, too
    await trust.look()
    assert trust.material is not before
    assert problems.codes == {}


@pytest.mark.parametrize(
    ("number", "day", "other_number", "other_day", "before"),
    [
        (1, 9, 2, 1, True),
        (2, 1, 1, 9, False),
        (1, 1, 1, 2, True),
        (1, 1, 1, 1, False),
        (None, 1, 5, 2, True),
        (None, 2, None, 1, False),
    ],
)
def test_which_list_is_the_earlier_one(
    number: int | None, day: int, other_number: int | None, other_day: int, before: bool
) -> None:
    one, other = (
        ListMark(number=n, since=dt.datetime(2026, 1, d, tzinfo=dt.UTC))
        for n, d in ((number, day), (other_number, other_day))
    )
    assert one.before(other) is before
