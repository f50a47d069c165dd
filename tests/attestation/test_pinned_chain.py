"""Chains to a pinned root, each wrong in one thing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.evidence import EvidenceError
from agent.attestation.pinned_chain import (
    MAX_CHAIN_BYTES,
    ChainRules,
    earliest_end,
    load_chain,
    spki_sha256,
    verify_chain,
)
from tests.fakes.certificates import BEGIN, END, Issued, issue

ROOT = issue("the root")
ISSUER = issue("an issuer", ROOT)
LEAF = issue("a leaf", ISSUER, ca=False)
RULES = ChainRules(
    prefix="test_chain",
    what="the chain",
    root_spki_sha256=spki_sha256(ROOT.certificate),
    curve="secp256r1",
    digest="sha256",
    lengths=range(2, 5),
)
MOMENT = BEGIN + timedelta(days=1)


def verify(
    *chain: Issued, rules: ChainRules = RULES, moment: timedelta = timedelta(days=1)
) -> None:
    pem = "".join(one.pem for one in chain).encode()
    verify_chain(load_chain(pem, rules), rules, BEGIN + moment)


def refusal(
    *chain: Issued, rules: ChainRules = RULES, moment: timedelta = timedelta(days=1)
) -> str:
    with pytest.raises(EvidenceError) as caught:
        verify(*chain, rules=rules, moment=moment)
    assert "the chain: " in str(caught.value)
    return caught.value.code.removeprefix("test_chain_")


def refused_pem(pem: bytes) -> str:
    with pytest.raises(EvidenceError) as caught:
        load_chain(pem, RULES)
    return caught.value.code.removeprefix("test_chain_")


def test_a_good_chain_is_believed_from_its_first_moment_to_its_last():
    verify(LEAF, ISSUER, ROOT)
    verify(LEAF, ISSUER, ROOT, moment=timedelta())
    verify(LEAF, ISSUER, ROOT, moment=END - BEGIN)
    assert refusal(LEAF, ISSUER, ROOT, moment=timedelta(seconds=-1)) == "expired"
    assert refusal(LEAF, ISSUER, ROOT, moment=END - BEGIN + timedelta(seconds=1)) == "expired"


def test_any_certificate_of_the_chain_may_end_it():
    short = issue("an issuer", ROOT, end=BEGIN + timedelta(days=2))
    leaf = issue("a leaf", short, ca=False)
    verify(leaf, short, ROOT)
    assert refusal(leaf, short, ROOT, moment=timedelta(days=3)) == "expired"
    assert earliest_end([leaf.certificate, short.certificate]) == BEGIN + timedelta(days=2)


def test_a_root_with_another_key_is_refused_whatever_its_name():
    root = issue("the root")
    issuer = issue("an issuer", root)
    assert refusal(issue("a leaf", issuer, ca=False), issuer, root) == "root"


def test_a_certificate_with_the_roots_key_that_did_not_sign_itself_is_refused():
    imposed = issue("the root", issue("another"), key=ROOT.key)
    assert refusal(LEAF, ISSUER, imposed) == "invalid"


def test_a_leaf_of_another_issuer_with_the_same_name_is_refused():
    other = issue("an issuer", ROOT)
    assert refusal(issue("a leaf", other, ca=False), ISSUER, ROOT) == "invalid"


def test_an_order_other_than_from_leaf_to_root_is_refused():
    assert refusal(ISSUER, LEAF, ROOT) == "invalid"
    assert refusal(ROOT, ISSUER, LEAF) == "root"


def test_a_leaf_that_issues_and_an_issuer_that_may_not_are_refused():
    assert refusal(issue("a leaf", ISSUER), ISSUER, ROOT) == "invalid"
    no_ca = issue("an issuer", ROOT, ca=False, cert_sign=False)
    assert refusal(issue("a leaf", no_ca, ca=False), no_ca, ROOT) == "invalid"
    no_sign = issue("an issuer", ROOT, cert_sign=False)
    assert refusal(issue("a leaf", no_sign, ca=False), no_sign, ROOT) == "invalid"


def test_a_chain_longer_than_an_issuer_allows_is_refused():
    strict = issue("an issuer", ROOT, path_length=0)
    verify(issue("a leaf", strict, ca=False), strict, ROOT)
    below = issue("below", strict)
    assert refusal(issue("a leaf", below, ca=False), below, strict, ROOT) == "invalid"


def test_another_curve_or_hash_than_the_one_is_refused():
    curve = issue("a leaf", ISSUER, ca=False, curve=ec.SECP384R1())
    assert refusal(curve, ISSUER, ROOT) == "invalid"
    digest = issue("a leaf", ISSUER, ca=False, digest=hashes.SHA512())
    assert refusal(digest, ISSUER, ROOT) == "invalid"


def test_a_critical_extension_that_is_not_understood_is_refused():
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for critical in (False, True):
        leaf = issue("a leaf", ISSUER, ca=False, extra=[(unknown, critical)])
        if critical:
            assert refusal(leaf, ISSUER, ROOT) == "invalid"
        else:
            verify(leaf, ISSUER, ROOT)


def test_a_leaf_of_another_role_is_refused():
    named = replace(RULES, leaf_name="a leaf")
    verify(LEAF, ISSUER, ROOT, rules=named)
    other = issue("another leaf", ISSUER, ca=False)
    assert refusal(other, ISSUER, ROOT, rules=named) == "invalid"


def test_a_chain_that_was_believed_lends_no_belief_under_other_rules():
    verify(LEAF, ISSUER, ROOT)
    pinned_elsewhere = replace(RULES, root_spki_sha256="00" * 32)
    assert refusal(LEAF, ISSUER, ROOT, rules=pinned_elsewhere) == "root"


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_chain_of_another_length_is_incomplete(count: int):
    assert refused_pem(ROOT.pem.encode() * count) == "incomplete"


def test_pem_must_be_spelled_in_the_one_way():
    pem = LEAF.pem + ROOT.pem
    assert len(load_chain(pem.encode(), RULES)) == 2
    assert len(load_chain(pem.rstrip().encode(), RULES)) == 2
    for changed in (
        "\n" + pem,
        pem + "\n",
        pem + "text",
        LEAF.pem + "text\n" + ROOT.pem,
        pem.replace("\n", "\r\n"),
        pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        pem.replace("-----\nMII", "-----\n\nMII"),
        pem.replace("-----\nMII", "-----\nMI\nI"),
        LEAF.pem + ROOT.pem.replace("MII", "====", 1),
        LEAF.pem + ROOT.pem.replace("MII", "MIJ", 1),
    ):
        assert refused_pem(changed.encode()) == "malformed"


def test_a_chain_beyond_the_bound_is_not_read():
    assert refused_pem(b"A" * (MAX_CHAIN_BYTES + 1)) == "malformed"
