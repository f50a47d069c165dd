"""Every way in by which bytes of others reach a parser of evidence, with good bytes to begin at.

Invariant of all of them: any bytes are read, or refused with an error of the entry's own
(EvidenceError here); nothing else ever. What is no evidence stands in `outside`.
"""

from __future__ import annotations

import base64
import gzip
import json
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec

from agent.attestation.appraisal import read_document
from agent.attestation.collateral import Endorsements, PcsResponse, split_pem
from agent.attestation.collateral_cache.manifests import manifest_bytes
from agent.attestation.document import DeviceItem
from agent.attestation.document_v2 import unpack
from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.identity import read_identity
from agent.attestation.gpu.items import verify_items
from agent.attestation.gpu.rim import read_manifest
from agent.attestation.gpu.spdm import parse_report as parse_spdm
from agent.attestation.gpu.verify import decode_evidence
from agent.attestation.pinned_chain import ChainRules, load_chain
from agent.attestation.snp_certificate import ca_key, chip_key, parse_certificate
from agent.attestation.snp_crl import verify_crl
from agent.attestation.snp_report import parse_report
from agent.attestation.snp_table import parse_certificate_table
from agent.attestation.strict_json import read_json
from agent.attestation.tdx.answers import collateral_of
from agent.attestation.tdx.collateral import TdxCollateral, decode_collateral
from agent.attestation.tdx.documents import read_qe_identity, read_tcb_info
from agent.attestation.tdx.quote import exact_size, parse_quote
from agent.attestation.tdx.revocation import check_revocation
from agent.releases.sigstore_bundle import outline
from agent.releases.sigstore_json import BundleError
from agent.releases.trusted_root import Used, narrow
from scripts.fuzzing.entry import Entry, Parse
from scripts.fuzzing.outside import OUTSIDE
from tests.fakes import intel as intel_fakes
from tests.fakes import sigstore
from tests.fakes.attested_guest import NONCE, Guest, pem
from tests.fakes.nvidia_rim import VBIOS_GOLDEN, FakeRimSigner
from tests.fakes.snp_chain import NOW, FakeAmd
from tests.fakes.tdx_guest import (
    TdxGuest,
    answers_of,
    device,
    gpu_item,
    intel,
    nvidia,
    switch_item,
)


@cache
def _amd() -> FakeAmd:
    return FakeAmd()


@cache
def _guest() -> Guest:
    return Guest(amd=_amd())


@cache
def _tdx_guest() -> TdxGuest:
    return TdxGuest(items=lambda: [gpu_item(1), switch_item(1)])


def _certificate(data: bytes) -> None:
    certificate = parse_certificate(data, "it")
    for read in (lambda: ca_key(certificate, 1), lambda: chip_key(certificate)):
        try:
            read()
        except EvidenceError:
            continue


def _amd_crl(data: bytes) -> None:
    verify_crl(data, parse_certificate(_amd().endorsements.ark, "ARK"), NOW)


def _intel_crl(data: bytes) -> None:
    vendor = intel()
    check_revocation(
        data,
        vendor.platform_ca.certificate,
        (vendor.pck.certificate,),
        intel_fakes.NOW,
        "pck_crl",
    )


def _chain(data: bytes) -> None:
    rules = ChainRules(
        prefix="gpu_chain",
        what="the chain",
        root_spki_sha256="",
        curve="secp384r1",
        digest="sha384",
        lengths=range(2, 9),
    )
    read_identity(load_chain.__wrapped__(data, rules))


def _pcs(data: bytes) -> None:
    collateral_of(read_json(data, tuple[PcsResponse, ...], "it"))


def _documents(data: bytes) -> None:
    """Intel's two inner documents, both from these bytes."""
    text = data.decode("utf-8", "surrogateescape")
    given = msgspec.structs.replace(_collateral(), tcb_info=text, qe_identity=text)
    for read in (read_tcb_info, read_qe_identity):
        try:
            read(given, intel_fakes.NOW)
        except EvidenceError:
            continue


@cache
def _collateral() -> TdxCollateral:
    return intel().collateral()


class _Item(msgspec.Struct):
    id: str
    kind: str
    vendor: str
    format: str
    evidence: dict[str, Any]


def _devices(data: bytes) -> None:
    listed = read_json(data, tuple[_Item, ...], "it")
    items = [DeviceItem(**msgspec.structs.asdict(item)) for item in listed]
    verify_items(items, intel_fakes.NOW, nvidia().root)


@cache
def _rim_signer() -> FakeRimSigner:
    return FakeRimSigner()


def _rim(data: bytes) -> None:
    read_manifest(manifest_bytes(data), _rim_signer().root, intel_fakes.NOW)


def _rims() -> list[bytes]:
    manifest = _rim_signer().manifest(VBIOS_GOLDEN)
    answer = json.dumps({"id": "it", "rim": base64.b64encode(manifest).decode()})
    return [manifest, answer.encode()]


def _sigstore(parse: Parse) -> Parse:
    """What refuses with an error of its own."""

    def parse_or_refuse(data: bytes) -> None:
        with suppress(BundleError):
            parse(data)

    return parse_or_refuse


def _narrowed(data: bytes) -> bytes:
    log, promised = sigstore.key_id("log"), sigstore.key_id("certificates")
    return narrow(data, Used(log, {promised: sigstore.NOW}, (sigstore.NOW,)))


def _flat_collateral() -> bytes:
    given = msgspec.structs.asdict(_collateral())
    return json.dumps(
        {k: v.hex() if isinstance(v, bytes) else v for k, v in given.items()}
    ).encode()


def _given() -> Endorsements:
    return _amd().endorsements


EVIDENCE: dict[str, Entry] = {
    "snp_report": Entry(parse_report, lambda: [_amd().report(), _amd().report(version=5)]),
    "snp_certificate": Entry(_certificate, lambda: [_given().leaf, _given().ask, _given().ark]),
    "snp_crl": Entry(_amd_crl, lambda: [_amd().crl(), _amd().crl(5, 7)]),
    "snp_table": Entry(parse_certificate_table, lambda: [bytes(24), _table()]),
    "document": Entry(
        lambda data: read_document(data, NONCE),
        lambda: [_guest().v3(), _guest().v2(), _tdx_guest().v3(), _tdx_guest().v2()],
    ),
    "json": Entry(
        lambda data: read_json(data, dict[str, Any], "it"),
        lambda: [b'{"a":[1,2.5e3,"\\u00e9",null,true,{"b":{}}]}'],
    ),
    "gzip": Entry(unpack, lambda: [gzip.compress(b"evidence", mtime=0)]),
    "pem": Entry(
        lambda data: split_pem(data.decode("latin-1"), "it"),
        lambda: [pem(_given().ask, _given().ark).encode()],
    ),
    "tdx_quote": Entry(
        lambda data: (exact_size(data), parse_quote(data)),
        lambda: [intel().quote(), intel().quote(version=5)],
    ),
    "tdx_collateral": Entry(decode_collateral, lambda: [_flat_collateral()]),
    "tdx_answers": Entry(_pcs, lambda: [json.dumps(answers_of(_collateral())).encode()]),
    "tdx_documents": Entry(
        _documents, lambda: [_collateral().tcb_info.encode(), _collateral().qe_identity.encode()]
    ),
    "tdx_crl": Entry(_intel_crl, lambda: [_collateral().pck_crl]),
    "sigstore_bundle": Entry(
        _sigstore(outline), lambda: [json.dumps(sigstore.Signature().bundle()).encode()]
    ),
    "sigstore_root": Entry(
        _sigstore(_narrowed), lambda: [json.dumps(sigstore.trusted_root()).encode()]
    ),
    "gpu_report": Entry(parse_spdm, lambda: [device(1).report()]),
    "gpu_chain": Entry(_chain, lambda: [device(1).pem]),
    "gpu_evidence": Entry(decode_evidence, lambda: [msgspec.json.encode([device(1).evidence()])]),
    "gpu_rim": Entry(_rim, _rims),
    "gpu_devices": Entry(_devices, lambda: [json.dumps([gpu_item(1), switch_item(1)]).encode()]),
}

ENTRIES: dict[str, Entry] = EVIDENCE | OUTSIDE


def _table() -> bytes:
    """The VCEK's entry, the end, and four bytes for a certificate."""
    guid = bytes.fromhex("8d75da6364e66445adc5f4b93be8accd")
    return guid + (48).to_bytes(4, "little") + (4).to_bytes(4, "little") + bytes(24) + b"0123"
