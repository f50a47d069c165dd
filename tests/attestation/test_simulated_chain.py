from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography.x509.oid import NameOID

from agent.attestation.simulated_chain import (
    SimulatedChain,
    SimulatedChainError,
    make_chain,
    open_chain,
)
from agent.attestation.simulated_report import make_report
from tests.fakes.snp_documents import check_chain, check_report

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state") / "simulated-processor.pem"


@pytest.fixture(scope="module")
def chain(place: Path) -> SimulatedChain:
    return open_chain(place, NOW)


def test_an_installation_has_one_processor_and_its_key_is_private(
    place: Path, chain: SimulatedChain
) -> None:
    again = open_chain(place, NOW + dt.timedelta(days=400))
    assert again.vcek == chain.vcek
    assert again.root_pem == chain.root_pem
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    assert place.read_bytes().count(b"PRIVATE KEY") == 2  # one key: the VCEK's


def test_two_installations_have_nothing_in_common(chain: SimulatedChain) -> None:
    other = make_chain(NOW, rsa_bits=2048)
    assert other.chip_id != chain.chip_id
    assert other.root_spki_sha256 != chain.root_spki_sha256


def test_the_chain_is_signed_as_amd_signs(chain: SimulatedChain) -> None:
    check_chain(chain.vcek, chain.ask, chain.ark)
    for certificate in (chain.ask, chain.ark):
        assert certificate.public_key().key_size == 4096


def test_every_subject_says_that_it_is_not_confidential(chain: SimulatedChain) -> None:
    for certificate in (chain.vcek, chain.ask, chain.ark):
        (told,) = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        assert told.value == "SIMULATED — NOT CONFIDENTIAL"
    names = [c.subject.rfc4514_string().split(",")[0] for c in (chain.vcek, chain.ask, chain.ark)]
    assert names == ["CN=SEV-VCEK", "CN=SEV-Milan", "CN=ARK-Milan"]


def test_a_report_is_the_processors_over_what_was_asked(chain: SimulatedChain) -> None:
    report = make_report(
        chain, report_data=b"\x11" * 64, measurement=b"\x22" * 48, report_id=b"\x33" * 32
    )
    check_report(report, chain.vcek)
    assert report[0x50:0x90] == b"\x11" * 64
    assert report[0x90:0xC0] == b"\x22" * 48
    assert report[0x140:0x160] == b"\x33" * 32
    assert int.from_bytes(report[0x08:0x10], "little") == 0x30000  # no debug, no migration
    assert report[0xC0:0xE0] == bytes(32)  # host data


def certificates_of(data: bytes) -> bytes:
    return data[data.index(b"-----BEGIN CERT") :]


@pytest.mark.parametrize(
    "what",
    ["empty", "half", "damaged", "without a root", "another's certificates", "another's root"],
)
def test_a_file_that_is_no_processor_is_refused_with_the_mend(
    what: str, place: Path, chain: SimulatedChain, others: bytes, tmp_path: Path
) -> None:
    whole = place.read_bytes()
    rootless = whole[: whole.rindex(b"-----BEGIN")]
    spoiled = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "damaged": whole.replace(b"MII", b"MIJ"),
        "without a root": rootless,
        "another's certificates": whole[: -len(certificates_of(whole))] + others,
        "another's root": rootless + others[others.rindex(b"-----BEGIN") :],
    }
    file = tmp_path / "p.pem"
    file.write_bytes(spoiled[what])
    with pytest.raises(SimulatedChainError, match="remove it, and another one is made"):
        open_chain(file, NOW)
    assert file.read_bytes() == spoiled[what]  # never replaced: evidence may hang on it


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("other") / "p.pem"
    open_chain(file, NOW)
    return certificates_of(file.read_bytes())
