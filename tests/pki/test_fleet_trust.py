"""The fleet's certificates: what is taken, what is refused by name, what is told beforehand."""

from __future__ import annotations

import datetime as dt
import ssl
import stat
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.cli import cli
from agent.config import TlsConfig
from agent.pki import x509_client
from agent.pki.authority import Authority, AuthorityError, new_key
from agent.pki.facts import Facts, TrustError
from agent.pki.inspection import certificate_uri, inspect
from agent.pki.keeper import FleetCertificates
from agent.pki.names import host_uri, peer_uri
from agent.pki.tls_contexts import make_tls_contexts
from agent.pki.x509_client import X509ClientError
from tests.fakes.fleet import DOMAIN, HOST, NotedProblems, Pki


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path / "pki")


def test_a_good_set_of_files_is_taken(pki: Pki) -> None:
    tls = pki.tls()
    material = make_tls_contexts(tls, inspect(tls, HOST))
    assert material.facts.uri == host_uri(DOMAIN, HOST)
    for context in (material.server, material.client):
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("broken", "setting", "reason"),
    [
        ("no certificate", "certificate", "cannot read"),
        ("another host's", "certificate", "not spiffe://fleet.test/host/tests"),
        ("foreign", "certificate", "not issued by the authority"),
        ("garbage", "certificate", "no certificates in PEM form"),
        ("another key", "key", "not the key of"),
        ("readable key", "key", "may be read by others"),
        ("no ca", "ca", "cannot read"),
        ("foreign list", "crl", "not signed by the authority"),
        ("empty list", "crl", "no list of revoked certificates"),
    ],
)
def test_a_wrong_file_is_named(
    pki: Pki, tmp_path: Path, broken: str, setting: str, reason: str
) -> None:
    tls, foreign = pki.tls(), Pki(tmp_path / "foreign")
    assert tls.crl is not None
    match broken:
        case "no certificate":
            tls.certificate.unlink()
        case "another host's":
            tls = pki.tls(pki.host("other"))
        case "foreign":
            tls.certificate.write_bytes(foreign.host().pem.read_bytes())
        case "garbage":
            tls.certificate.write_bytes(b"garbage")
        case "another key":
            tls.key.write_bytes(pki.host().key.read_bytes())
        case "readable key":
            tls.key.chmod(0o644)
        case "no ca":
            tls.ca.unlink()
        case "foreign list":
            tls.crl.write_bytes(foreign.crl.read_bytes())
        case "empty list":
            tls.crl.write_bytes(b"")
    with pytest.raises(TrustError, match=reason) as raised:
        inspect(tls, HOST)
    assert raised.value.setting == setting


async def test_a_change_that_is_wrong_changes_nothing_and_is_told(pki: Pki) -> None:
    problems = NotedProblems()
    trust = FleetCertificates(pki.tls(), HOST, problems)
    await trust.look()
    before = trust.material
    good = trust.tls.certificate.read_bytes()
    trust.tls.certificate.write_bytes(b"garbage")
    await trust.look()
    assert trust.material is before
    assert problems.codes == {"trust/unusable": "tls_unusable"}
    assert problems.details["trust/unusable"].startswith("listen.tls.certificate: ")
    trust.tls.certificate.write_bytes(good)
    await trust.look()
    assert trust.material is not before
    assert problems.codes == {}


async def test_a_process_that_could_not_read_is_no_fault_of_the_files(pki: Pki) -> None:
    """They are read again at the next look, although none of them changed."""
    problems, failures = NotedProblems(), [X509ClientError("it was killed")]

    async def read(tls: TlsConfig, host_id: str) -> Facts:
        if failures:
            raise failures.pop()
        return await x509_client.inspect(tls, host_id)

    trust = FleetCertificates(pki.tls(), HOST, problems, read=read)
    await trust.look()
    assert (trust.material, problems.codes) == (None, {"trust/unusable": "tls_not_read"})
    await trust.look()
    assert trust.material is not None
    assert problems.codes == {}


async def test_what_the_process_dies_of_is_told(pki: Pki, tmp_path: Path) -> None:
    tls = msgspec.structs.replace(pki.tls(), key=tmp_path / "no/such" / ("k" * 300))
    with pytest.raises(X509ClientError, match="process that reads certificates failed"):
        await x509_client.request_certificate(tls, HOST)


async def test_what_is_as_before_is_not_read_again(pki: Pki) -> None:
    trust = FleetCertificates(pki.tls(), HOST, NotedProblems())
    await trust.look()
    before, rings = trust.material, trust.changed.count
    await trust.look()
    assert (trust.material, trust.changed.count) == (before, rings)


@pytest.mark.parametrize(
    ("days", "codes"),
    [
        (10, {}),
        (27.5, {"trust/ending/crl": "crl_expiring"}),
        (30.1, {"trust/ending/crl": "crl_expired"}),
        (
            84,
            {
                "trust/ending/crl": "crl_expired",
                "trust/ending/certificate": "certificate_expiring",
            },
        ),
        (
            91,
            {"trust/ending/crl": "crl_expired", "trust/ending/certificate": "certificate_expired"},
        ),
    ],
)
async def test_ends_are_told_days_ahead(pki: Pki, days: float, codes: dict[str, str]) -> None:
    problems = NotedProblems()
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    trust = FleetCertificates(pki.tls(pki.host(days=90)), HOST, problems, now=lambda: later)
    await trust.look()
    assert problems.codes == codes


def test_a_name_is_taken_whole_or_not_at_all() -> None:
    one, two = ("URI", "spiffe://a/coordinator"), ("URI", "spiffe://a/observer")
    assert peer_uri({"subjectAltName": (("DNS", "x"), one)}) == one[1]
    for names in ((), (one, two), (one, one), (("DNS", one[1]),)):
        assert peer_uri({"subjectAltName": names}) is None
    assert peer_uri({}) is None
    assert peer_uri(None) is None


def test_an_authority_is_not_made_twice_and_is_there_again(tmp_path: Path) -> None:
    made = Authority.create(tmp_path / "ca", "fleet.test")
    with pytest.raises(AuthorityError, match="already"):
        Authority.create(tmp_path / "ca", "fleet.test")
    found = Authority.open(tmp_path / "ca")
    assert (found.certificate, found.record) == (made.certificate, made.record)
    with pytest.raises(AuthorityError, match="pki init"):
        Authority.open(tmp_path / "nowhere")


def test_a_request_does_not_choose_its_name(pki: Pki) -> None:
    from cryptography.hazmat.primitives.hashes import SHA256

    key = new_key()
    wish = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier("spiffe://fleet.test/coordinator")]
    )
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(wish, critical=False)
        .sign(key, SHA256())
    )
    pem = csr.public_bytes(Encoding.PEM)
    given = pki.authority.sign_request(pem, host_uri(DOMAIN, "h1"))
    assert certificate_uri(given) == host_uri(DOMAIN, "h1")
    with pytest.raises(AuthorityError, match="PEM"):
        pki.authority.sign_request(b"x", host_uri(DOMAIN, "h1"))


def test_the_command_line_makes_a_fleet(tmp_path: Path) -> None:
    run, where = CliRunner(), ["--dir", str(tmp_path / "pki")]

    def pki(*words: str) -> tuple[int, str]:
        ended = run.invoke(cli, ["pki", *words])
        return ended.exit_code, ended.output

    assert pki("init", *where, "--trust-domain", "fleet.example")[0] == 0
    code, said = pki("init", *where, "--trust-domain", "fleet.example")
    assert (code, "already" in said) == (1, True)
    assert pki("issue", *where)[0] == 2
    assert pki("issue", *where, "--host", "../x")[0] == 2
    for words in (["--host", "h1"], ["--coordinator"], ["--observer"]):
        assert pki("issue", *where, *words)[0] == 0
    directory = tmp_path / "pki"
    assert stat.S_IMODE((directory / "ca.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((directory / "h1.key").stat().st_mode) == 0o600
    names = {
        certificate_uri(x509.load_pem_x509_certificate((directory / f"{one}.pem").read_bytes()))
        for one in ("h1", "coordinator", "observer")
    }
    assert names == {
        "spiffe://fleet.example/host/h1",
        "spiffe://fleet.example/coordinator",
        "spiffe://fleet.example/observer",
    }
    code, said = pki("crl", *where, str(directory / "h1.pem"))
    assert (code, "1 revoked" in said) == (0, True)
    crl = x509.load_pem_x509_crl((directory / "crl.pem").read_bytes())
    assert len(crl) == 1
