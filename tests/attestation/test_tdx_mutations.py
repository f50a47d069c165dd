"""A genuine quote with anything changed, cut or added is refused, always by an EvidenceError."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.attestation.evidence import EvidenceError
from agent.attestation.tdx.collateral import decode_collateral
from agent.attestation.tdx.quote import exact_size, parse_quote
from agent.attestation.tdx.verify import verify_quote, verify_signed_quote
from tests.tdx_gpu_vectors import PHALA_TIME, needs_vectors, tdx_collateral, tdx_quote

HEADER, BODY, SIGNATURE, KEY, QE, CHAIN = 0, 48, 636, 700, 770, 1258


def code_of(quote: bytes) -> str:
    with pytest.raises(EvidenceError) as caught:
        verify_signed_quote(quote, PHALA_TIME)
    return caught.value.code


def flipped(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


@needs_vectors
def test_every_byte_of_a_genuine_quote_counts():
    quote = tdx_quote("phala")
    codes = [code_of(flipped(quote, at, at % 8)) for at in range(exact_size(quote))]
    # By region, each has its own reason, and no other.
    assert set(codes[BODY:632]) == {"tdx_quote_signature"}
    assert set(codes[SIGNATURE:KEY]) == {"tdx_quote_signature"}
    assert set(codes[KEY : KEY + 64]) == {"tdx_attestation_key"}
    assert set(codes[QE : QE + 384 + 64]) == {"tdx_qe_report_signature"}
    assert set(codes[CHAIN + 6 :]) <= {
        "tdx_pck_chain_malformed",
        "tdx_pck_chain_incomplete",
        "tdx_pck_chain_invalid",
        "tdx_pck_chain_root",
        "tdx_pck_chain_expired",
    }


@needs_vectors
@pytest.mark.parametrize("name", ["phala", "outdated"])
def test_a_quote_cut_anywhere_is_refused(name: str):
    quote = tdx_quote(name)
    for size in range(exact_size(quote)):
        with pytest.raises(EvidenceError) as caught:
            parse_quote(quote[:size])
        assert caught.value.code == "tdx_quote_truncated"


@needs_vectors
def test_anything_but_zeros_after_a_quote_is_refused():
    quote = tdx_quote("phala")
    padding = len(quote) - exact_size(quote)
    assert padding > 0
    for at in range(exact_size(quote), len(quote)):
        assert code_of(flipped(quote, at, 0)) == "tdx_quote_trailing_data"


@needs_vectors
@pytest.mark.parametrize("field", ["signature data", "QE report data", "chain"])
@pytest.mark.parametrize("by", [-1, 1, 255])
def test_a_size_that_is_not_what_is_there_is_refused(field: str, by: int):
    quote = bytearray(tdx_quote("phala"))
    at = {"signature data": 632, "QE report data": 766, "chain": 1254}[field]
    at = quote.index((3678).to_bytes(4, "little")) if field == "chain" else at
    size = int.from_bytes(quote[at : at + 4], "little")
    quote[at : at + 4] = (size + by).to_bytes(4, "little")
    assert code_of(bytes(quote)) in {
        "tdx_quote_truncated",
        "tdx_quote_size",
        "tdx_quote_trailing_data",
    }


@needs_vectors
@pytest.mark.parametrize("member", ["tcb_info", "qe_identity"])
def test_a_document_with_any_character_changed_is_refused(member: str):
    quote, collateral = tdx_quote("phala"), tdx_collateral("phala")
    text = getattr(collateral, member)
    for at in range(len(text)):
        other = "0" if text[at] != "0" else "1"
        changed = {member: text[:at] + other + text[at + 1 :]}
        with pytest.raises(EvidenceError) as caught:
            verify_quote(quote, msgspec.structs.replace(collateral, **changed), PHALA_TIME)
        assert caught.value.code.startswith(("tdx_collateral", f"tdx_{member}"))


@needs_vectors
@pytest.mark.parametrize("member", ["pck_crl", "root_ca_crl"])
def test_a_revocation_list_with_any_byte_changed_is_refused(member: str):
    quote, collateral = tdx_quote("phala"), tdx_collateral("phala")
    data = getattr(collateral, member)
    for at in range(len(data)):
        changed = {member: flipped(data, at, at % 8)}
        with pytest.raises(EvidenceError) as caught:
            verify_quote(quote, msgspec.structs.replace(collateral, **changed), PHALA_TIME)
        assert caught.value.code.startswith(("tdx_pck_crl_", "tdx_root_crl_"))


@needs_vectors
@pytest.mark.parametrize("member", ["tcb_info_issuer_chain", "qe_identity_issuer_chain"])
def test_an_issuer_chain_with_any_byte_changed_is_refused(member: str):
    quote, collateral = tdx_quote("phala"), tdx_collateral("phala")
    text = getattr(collateral, member)
    for at in range(len(text.rstrip())):
        other = "A" if text[at] != "A" else "B"
        changed = {member: text[:at] + other + text[at + 1 :]}
        with pytest.raises(EvidenceError):
            verify_quote(quote, msgspec.structs.replace(collateral, **changed), PHALA_TIME)


@needs_vectors
@pytest.mark.parametrize("member", ["tcb_info_signature", "qe_identity_signature"])
def test_a_documents_signature_counts_in_every_byte_and_in_its_length(member: str):
    quote, collateral = tdx_quote("phala"), tdx_collateral("phala")
    signature = getattr(collateral, member)
    others = [flipped(signature, at, at % 8) for at in range(len(signature))]
    for other in (*others, b"", signature[:-1], signature + b"\0"):
        changed = msgspec.structs.replace(collateral, **{member: other})
        with pytest.raises(EvidenceError) as caught:
            verify_quote(quote, changed, PHALA_TIME)
        assert caught.value.code == f"tdx_{member}"


@settings(max_examples=300)
@given(st.binary(max_size=6000))
def test_no_bytes_make_the_quote_parser_do_anything_but_refuse(data: bytes):
    with pytest.raises(EvidenceError):
        parse_quote(data)


@needs_vectors
@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, 4935), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_changes_make_a_quote_do_anything_but_refuse(changes: list[tuple[int, int]]):
    quote = tdx_quote("phala")[:4936]
    changed = bytearray(quote)
    for at, value in changes:
        changed[at] = value
    if bytes(changed) != quote:
        code_of(bytes(changed))


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_no_bytes_make_the_collateral_parser_do_anything_but_refuse(data: bytes):
    with pytest.raises(EvidenceError) as caught:
        decode_collateral(data)
    assert caught.value.code == "tdx_collateral_malformed"
