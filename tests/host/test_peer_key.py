"""The digest of a peer's key agrees with what a parsing library says, for every kind of key."""

import datetime as dt
import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from agent.host.peer_key import UnreadableKeyError, issuer_of, spki_of, spki_sha256

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
KEYS = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa-2048": lambda: rsa.generate_private_key(65537, 2048),
    "rsa-4096": lambda: rsa.generate_private_key(65537, 4096),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


def certificate(key, *, subject="guest", names=1):
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    alternatives = [x509.DNSName(f"name{n}.example") for n in range(names)]
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(START + dt.timedelta(days=1))
    )
    if alternatives:
        extension = x509.SubjectAlternativeName(alternatives)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, algorithm).public_bytes(Encoding.DER)


def spki_by_library(key):
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


GOOD = certificate(KEYS["p256"]())


class Peer:
    """A TLS object as far as it is asked."""

    def __init__(self, shown):
        self._shown = shown

    def getpeercert(self, binary_form):
        assert binary_form
        return self._shown


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize(("subject", "names"), [("guest", 1), ("g", 0), ("g" * 64, 300)])
def test_the_key_is_the_one_that_a_library_finds(kind, subject, names):
    key = KEYS[kind]()
    expected = spki_by_library(key)
    der = certificate(key, subject=subject, names=names)
    assert spki_of(der) == expected
    assert spki_sha256(Peer(der)) == hashlib.sha256(expected).hexdigest()


def test_the_issuer_is_the_one_that_a_library_finds_also_in_a_list_of_revoked_ones():
    der = certificate(KEYS["p256"](), subject="issuer")
    issuer = x509.load_der_x509_certificate(der).issuer
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer)
        .last_update(START)
        .next_update(START + dt.timedelta(days=1))
        .sign(KEYS["p256"](), hashes.SHA256())
    )
    assert issuer_of(der) == issuer_of(crl.public_bytes(Encoding.DER)) == issuer.public_bytes()


def test_a_certificate_of_the_first_version_has_no_version_field():
    whole = certificate(KEYS["p256"](), names=30)
    assert whole[:2] == whole[4:6] == b"\x30\x82"  # either is longer than 255 bytes
    assert whole[8:13] == b"\xa0\x03\x02\x01\x02"
    sizes = [(int.from_bytes(whole[at : at + 2]) - 5).to_bytes(2) for at in (2, 6)]
    first = b"\x30\x82" + sizes[0] + b"\x30\x82" + sizes[1] + whole[13:]
    assert spki_of(first) == spki_of(whole)


@pytest.mark.parametrize("shown", [None, b""])
def test_a_peer_without_a_certificate_has_no_key(shown):
    with pytest.raises(UnreadableKeyError, match="no certificate"):
        spki_sha256(Peer(shown))


@pytest.mark.parametrize("cut", [1, 2, 4, 8, 40, 100, len(GOOD) - 1])
def test_a_certificate_that_was_cut_off_has_no_readable_key(cut):
    with pytest.raises(UnreadableKeyError, match="readable"):
        spki_of(GOOD[:cut])


def test_an_indefinite_length_is_not_der():
    with pytest.raises(UnreadableKeyError, match="readable"):
        spki_of(b"\x30\x80" + GOOD[2:])


def test_a_length_beyond_the_end_is_refused():
    with pytest.raises(UnreadableKeyError, match="readable"):
        spki_of(b"\x30\x84\xff\xff\xff\xff" + GOOD[4:])


@given(st.binary(max_size=200), st.integers(0, len(GOOD)))
def test_whatever_stands_there_only_unreadable_is_raised(noise, at):
    damaged = GOOD[:at] + noise + GOOD[at + len(noise) :]
    try:
        found = spki_of(damaged)
    except UnreadableKeyError:
        return
    assert found in damaged
    assert found[:1] == b"\x30"
