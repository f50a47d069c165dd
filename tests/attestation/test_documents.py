"""Documents have one spelling; everything beside it is refused, by a stable code."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.attestation.appraisal import read_document
from agent.attestation.collateral import split_pem
from agent.attestation.document import MAX_DOCUMENT_BYTES, MAX_EVIDENCE_BYTES, CpuKind
from agent.attestation.document_v2 import unpack
from agent.attestation.evidence import EvidenceError
from agent.attestation.strict_json import canonical_base64, lower_hex
from tests.attestation.refusals import GOOD, MILAN
from tests.fakes.attested_guest import (
    HPKE,
    NONCE,
    SPKI,
    T,
    b64,
    devices_section,
    keys_section,
    pem,
)

Change = Callable[[dict[str, Any]], None]


def code_of(body: bytes) -> str | None:
    try:
        read_document(body, NONCE)
    except EvidenceError as error:
        return error.code
    return None


def sets(path: str, value: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        *way, name = path.split(".")
        place: Any = document
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[name] = value

    return change


def drops(name: str) -> Change:
    return lambda document: document.pop(name)


def edits(path: str, edit: Callable[[str], str]) -> Change:
    def change(document: dict[str, Any]) -> None:
        *way, name = path.split(".")
        place: Any = document
        for step in way:
            place = place[int(step) if step.isdigit() else step]
        place[name] = edit(place[name])

    return change


CHANGES: dict[str, tuple[str, Change]] = {
    "an unknown member": ("document_malformed", sets("generated_at", "now")),
    "an unknown member within": ("document_malformed", sets("challenge.more", 1)),
    "an unknown member of the evidence": ("document_malformed", sets("cpu_evidence.x", 1)),
    "an unknown member of the hashes": ("document_malformed", sets("cpu_evidence.endorsed.x", 1)),
    "an unknown member of an entry": ("document_malformed", sets("collateral.0.x", 1)),
    "an unknown member of certificates": ("document_malformed", sets("collateral.0.data.x", 1)),
    "no challenge": ("document_malformed", drops("challenge")),
    "no keys": ("document_malformed", drops("crypto_material")),
    "no devices": ("document_malformed", drops("device_evidence")),
    "a number for text": ("document_malformed", sets("crypto_material", 5)),
    "null for text": ("document_malformed", sets("device_evidence", None)),
    "an empty section": ("document_inconsistent", sets("crypto_material", "")),
    "a nonce in upper case": ("document_malformed", edits("challenge.nonce", str.upper)),
    "a short nonce": ("document_malformed", edits("challenge.nonce", lambda n: n[2:])),
    "an odd nonce": ("document_malformed", edits("challenge.nonce", lambda n: n[1:])),
    "a nonce with a space": (
        "document_malformed",
        edits("challenge.nonce", lambda n: " " + n[1:]),
    ),
    "another nonce": ("nonce_mismatch", sets("challenge.nonce", "00" * 32)),
    "another report data": ("document_inconsistent", sets("challenge.report_data", "00" * 64)),
    "another algorithm": ("document_format", sets("challenge.report_data_algorithm", "v2")),
    "another hash of keys": (
        "document_inconsistent",
        sets("cpu_evidence.endorsed.crypto_material_hash", "00" * 32),
    ),
    "another hash of devices": (
        "document_inconsistent",
        sets("cpu_evidence.endorsed.device_evidence_hash", "00" * 32),
    ),
    "other evidence": ("document_format", sets("cpu_evidence.format", f"{T}/format/riscv/v1")),
    "base64 with a new line": ("document_malformed", edits("crypto_material", lambda t: t + "\n")),
    "base64 without its end": (
        "document_malformed",
        edits("cpu_evidence.report_base64", lambda t: t.rstrip("=")[:-1]),
    ),
    "base64 for URLs": ("document_malformed", edits("crypto_material", lambda t: "-" + t[1:])),
    "a report too long": (
        "document_too_large",
        sets("cpu_evidence.report_base64", b64(bytes(MAX_EVIDENCE_BYTES + 1))),
    ),
    "a role without a meaning": ("document_malformed", sets("collateral.0.role", "advice")),
    "certificates in another role": (
        "document_malformed",
        sets("collateral.0.role", "reference-values"),
    ),
    "an entry without an id": ("document_malformed", sets("collateral.0.id", "")),
    "half a chain": (
        "document_malformed",
        edits("collateral.0.data.cert_chain_pem", lambda chain: chain[: len(chain) // 2]),
    ),
    "a chain that is no PEM": (
        "document_malformed",
        sets("collateral.0.data.cert_chain_pem", "certificates"),
    ),
    "a dummy": ("document_dummy", sets("format", f"{T}/predicate/dummy/v2")),
    "another format": ("document_format", sets("format", f"{T}/predicate/attestation/v4")),
}


@pytest.mark.parametrize(("code", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_a_changed_document_is_refused(code: str, change: Change) -> None:
    assert code_of(GOOD.but(change=change).v3()) == code


ITEM = keys_section()["items"][0]
DEVICE = {"id": "gpu0", "kind": "gpu", "vendor": "nvidia", "format": "f", "evidence": {}}
KEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "another format": ("document_format", keys_section(format=f"{T}/crypto-material/v2")),
    "an unknown member": ("document_malformed", keys_section(more=1)),
    "the same id twice": ("document_malformed", keys_section(items=[ITEM, ITEM])),
    "a key in upper case": (
        "document_malformed",
        keys_section(items=[ITEM | {"data": SPKI.upper()}]),
    ),
    "a short key": ("document_malformed", keys_section(items=[ITEM | {"data": SPKI[2:]}])),
    "a key of another kind": (
        "document_format",
        keys_section(items=[ITEM | {"format": f"{T}/key/x25519-hpke/v1"}]),
    ),
    "an unknown key that is not hex": (
        "document_malformed",
        keys_section(items=[ITEM, {"id": "sign", "format": "f", "data": "xy"}]),
    ),
    "an empty id": ("document_malformed", keys_section(items=[ITEM, ITEM | {"id": ""}])),
}


@pytest.mark.parametrize(("code", "keys"), KEYS.values(), ids=KEYS.keys())
def test_keys_are_read_strictly(code: str, keys: dict[str, Any]) -> None:
    assert code_of(GOOD.but(keys=keys).v3()) == code


@pytest.mark.parametrize(
    ("code", "devices"),
    [
        ("document_format", {"format": "x", "items": []}),
        ("document_malformed", devices_section(DEVICE, DEVICE)),
        ("document_malformed", devices_section(DEVICE | {"more": 1})),
        ("document_malformed", devices_section(DEVICE | {"evidence": "text"})),
        ("document_malformed", {"items": []}),
    ],
)
def test_devices_are_read_strictly(code: str, devices: dict[str, Any]) -> None:
    assert code_of(GOOD.but(devices=devices).v3()) == code


@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body + b"{}",
        lambda body: body + b"x",
        lambda body: body[:-1] + b',"format":"x"}',
        lambda body: body.replace(b'"nonce":', b'"nonce": "","nonce":', 1),
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: body.replace(b'"collateral"', b'"\xff"', 1),
        lambda body: body[:-1] + b',"more":NaN}',
        lambda body: body[:-1] + b',"more":1e999}',
        lambda body: body[:-1] + b',"collateral":' + b"[" * 5000 + b"]" * 5000 + b"}",
        lambda body: body[:-1] + b',"more":' + b"[" * 200000 + b"]" * 200000 + b"}",
        lambda body: body[:-1] + b',"more":' + b"9" * 20000 + b"}",
        lambda _: b"",
        lambda _: b"null",
        lambda _: b"[]",
        lambda _: b"<html>",
    ],
)
def test_what_is_not_that_one_json_value_is_refused(spoil: Callable[[bytes], bytes]) -> None:
    assert code_of(spoil(GOOD.v3())) == "document_malformed"


def test_a_document_beyond_the_bound_is_not_even_read() -> None:
    assert code_of(b" " * (MAX_DOCUMENT_BYTES + 1)) == "document_too_large"


def test_a_duplicate_is_seen_within_a_section_too() -> None:
    def change(document: dict[str, Any]) -> None:
        keys = base64.b64decode(document["crypto_material"])
        twice = keys.replace(b'{"format"', b'{"format": "x", "format"', 1)
        document["crypto_material"] = b64(twice)

    body = GOOD.but(change=change).v3()
    assert code_of(body) in ("document_inconsistent", "document_malformed")


def test_formats_that_are_not_ours_to_read_are_left_alone() -> None:
    def change(document: dict[str, Any]) -> None:
        document["collateral"].append(
            {"id": "s", "role": "reference-values", "format": "f", "data": {"a": [1]}}
        )

    document = read_document(GOOD.but(change=change).v3(), NONCE)
    assert document.collateral.amd is not None


def test_certificates_for_something_else_than_the_cpu_are_none_for_it() -> None:
    body = GOOD.but(change=sets("collateral.0.subjects", ["gpu0"])).v3()
    assert read_document(body, NONCE).collateral.amd is None


def test_two_sets_of_certificates_for_the_cpu_are_refused() -> None:
    def change(document: dict[str, Any]) -> None:
        document["collateral"].append(document["collateral"][0] | {"id": "again"})

    assert code_of(GOOD.but(change=change).v3()) == "document_malformed"


def test_keys_of_a_kind_not_known_are_taken_in_silence() -> None:
    keys = keys_section(items=[ITEM, {"id": "sign", "format": "f", "data": "00ff"}])
    document = read_document(GOOD.but(keys=keys).v3(), NONCE)
    assert document.keys is not None
    assert (document.keys.tls_spki_sha256.hex(), document.keys.hpke) == (SPKI, None)


def test_a_good_document_reads_as_it_was_made() -> None:
    document = read_document(GOOD.v3(), NONCE)
    assert (document.version, document.cpu, document.devices) == (3, CpuKind.SNP, ())
    assert document.keys is not None
    assert document.keys.hpke == bytes.fromhex(HPKE)
    amd = document.collateral.amd
    assert amd is not None
    assert (amd.leaf, amd.ask, amd.ark) == (
        MILAN.endorsements.leaf,
        MILAN.endorsements.ask,
        MILAN.endorsements.ark,
    )


def test_a_report_that_is_called_a_quote_is_none() -> None:
    body = GOOD.but(change=sets("cpu_evidence.format", f"{T}/format/tdx-quote/v1")).v3()
    assert read_document(body, NONCE).cpu is CpuKind.TDX
    failed = [check.code for check in GOOD.judged(body).checks if not check.passed]
    assert failed == ["tdx_quote_version"]


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("document_malformed", sets("more", 1)),
        ("document_malformed", sets("body", b64(b"not gzip"))),
        ("document_malformed", sets("body", b64(gzip.compress(b"x")[:-1]))),
        ("document_malformed", sets("body", b64(gzip.compress(b"x") + b"more"))),
        ("document_malformed", sets("body", b64(gzip.compress(b"x") + gzip.compress(b"y")))),
        ("document_too_large", sets("body", b64(gzip.compress(bytes(64 << 20))))),
        ("document_malformed", sets("body", "")),
        ("document_dummy", sets("format", f"{T}/predicate/dummy/v2")),
        ("document_format", sets("format", f"{T}/predicate/sev-snp-guest/v1")),
    ],
)
def test_a_document_of_version_2_is_read_strictly(code: str, change: Change) -> None:
    assert code_of(GOOD.but(change=change).v2()) == code


def test_a_packed_report_unpacks_up_to_the_bound() -> None:
    assert unpack(gzip.compress(bytes(MAX_EVIDENCE_BYTES))) == bytes(MAX_EVIDENCE_BYTES)
    with pytest.raises(EvidenceError, match="more than"):
        unpack(gzip.compress(bytes(MAX_EVIDENCE_BYTES + 1)))


@given(st.binary(max_size=64))
def test_base64_and_hex_have_one_spelling(data: bytes) -> None:
    assert canonical_base64(b64(data), "it", 64) == data
    if data:
        assert lower_hex(data.hex(), "it", len(data)) == data
    for other in (b64(data) + "=", b64(data) + "\n", " " + b64(data)):
        with pytest.raises(EvidenceError):
            canonical_base64(other, "it", 64)


@pytest.mark.parametrize("text", ["AB==", "AAB=", "A===", "ÄAAA", "AAA"])
def test_base64_with_bits_left_over_is_refused(text: str) -> None:
    with pytest.raises(EvidenceError):
        canonical_base64(text, "it", 64)


def test_pem_holds_certificates_and_nothing_else() -> None:
    assert split_pem(pem(b"one", b"two"), "it") == [b"one", b"two"]
    assert split_pem("", "it") == []
    for spaced in (pem(b"one") + "\n", "\n" + pem(b"one").replace("\n", "\r\n")):
        assert split_pem(spaced, "it") == [b"one"]
    for wrong in ("x" + pem(b"one"), pem(b"one") + "x", pem(b"one").replace("END", "End"), "x"):
        with pytest.raises(EvidenceError):
            split_pem(wrong, "it")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
PATHS = [
    "format", "challenge", "challenge.nonce", "challenge.report_data", "cpu_evidence",
    "cpu_evidence.report_base64", "cpu_evidence.endorsed", "crypto_material", "device_evidence",
    "collateral", "collateral.0", "collateral.0.data", "collateral.0.subjects",
]  # fmt: skip


@cache
def good_v3() -> bytes:
    return GOOD.v3()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATHS), JSON)
def test_any_value_anywhere_is_read_or_refused(path: str, value: Any) -> None:
    document = json.loads(good_v3())
    place: Any = document
    *way, name = path.split(".")
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[int(name) if name.isdigit() else name] = value
    made = json.dumps(document).encode()
    if code_of(made) is None:
        GOOD.judged(made)
