"""Whether an answer is what was asked for, by the vendor's own signatures; and until when.

Imports what verifies: load it where an answer is judged, in a thread. An answer that fails is
never kept, so that a wrong one cannot stand in the way of the right one.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import assert_never
from urllib.parse import unquote

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes

from agent.attestation.collateral import Endorsements, split_pem
from agent.attestation.collateral_cache.answer import Edition, Life, VendorAnswer
from agent.attestation.collateral_cache.items import (
    AmdChain,
    AmdCrl,
    Item,
    PckCrl,
    QeIdentityItem,
    Rim,
    RootCrl,
    TcbInfoItem,
    Vcek,
)
from agent.attestation.collateral_cache.manifests import manifest_bytes
from agent.attestation.ecdsa import signature_holds
from agent.attestation.evidence import EvidenceError
from agent.attestation.manifest_name import ManifestName
from agent.attestation.pinned_chain import (
    UNREADABLE,
    Chain,
    earliest_end,
    ec_key,
    load_chain,
    spki_sha256,
    verify_chain,
)
from agent.attestation.roots import INTEL_ROOT, Trust
from agent.attestation.snp import require_hardware, require_tcb
from agent.attestation.snp_certificate import parse_certificate
from agent.attestation.snp_chain import verify_chain as verify_amd_chain
from agent.attestation.snp_chain import verify_issuers
from agent.attestation.snp_crl import authentic_crl
from agent.attestation.snp_tcb import Signer, decode_tcb
from agent.attestation.tdx.documents import Hex, Moment
from agent.attestation.tdx.revocation import authentic_list, edition_of
from agent.attestation.tdx.signatures import intel_rules
from agent.strict_json import StrictJsonError, decode_strict_json

# A newer list is looked for at least daily, and always long before the old one ends.
_REFRESH = dt.timedelta(days=1)
_MONTH = dt.timedelta(days=30)
_FOR_GOOD = dt.datetime.max.replace(tzinfo=dt.UTC)
_TCB_SIGNING = "Intel SGX TCB Signing"
_PCK_CAS = {"platform": "Intel SGX PCK Platform CA", "processor": "Intel SGX PCK Processor CA"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Roots:
    """Whose word counts."""

    amd: Trust
    intel_spki_sha256: str = INTEL_ROOT


class _Dated(msgspec.Struct, frozen=True, rename="camel"):
    id: str
    issue_date: Moment
    next_update: Moment
    tcb_evaluation_data_number: int
    fmspc: Hex | None = None


class _TcbInfoBody(msgspec.Struct, frozen=True):
    document: msgspec.Raw = msgspec.field(name="tcbInfo")
    signature: Hex


class _QeIdentityBody(msgspec.Struct, frozen=True):
    document: msgspec.Raw = msgspec.field(name="enclaveIdentity")
    signature: Hex


def authenticate(
    item: Item, answer: VendorAnswer, voucher: VendorAnswer | None, roots: Roots, now: dt.datetime
) -> Life:
    """How long the answer is good for. `voucher`: the answer to `voucher_of(item)`.

    Raises EvidenceError: it is not the vendor's, not about this item, or over; a revocation list
    that is over has a life that has ended.
    """
    match item:
        case AmdChain(product, signer):
            ask, ark = amd_issuers(answer)
            root, end = verify_issuers(ask, ark, signer, roots.amd, now)
            if root is not product:
                raise _wrong("amd-chain", f"it is of {root}, not of {product}")
            return Life(end, None)
        case Vcek():
            return Life(_vcek_end(item, answer, voucher, roots, now), None)
        case AmdCrl():
            _, ark = amd_issuers(_given(voucher))
            crl = authentic_crl(answer.body, parse_certificate(ark, "ARK"))
            end, edition = crl.next_update, Edition(0, *crl.order)
        case TcbInfoItem(fmspc):
            found, end = _signed_document(answer, _TcbInfoBody, roots, now)
            edition = Edition(found.tcb_evaluation_data_number, 0, found.issue_date)
            if found.id != "TDX" or bytes.fromhex(found.fmspc or "") != fmspc:
                raise _wrong("tcb-info", f"it is of {found.id!r} {found.fmspc}")
        case QeIdentityItem():
            found, end = _signed_document(answer, _QeIdentityBody, roots, now)
            edition = Edition(found.tcb_evaluation_data_number, 0, found.issue_date)
            if found.id != "TD_QE":
                raise _wrong("qe-identity", f"it is of {found.id!r}")
        case PckCrl(ca):
            issuer, anchor = _pck_issuer(answer, _PCK_CAS[ca], roots, now)
            listed, edition = _list(answer, issuer, "pck_crl")
            end = min(listed, earliest_end([issuer, anchor]))
        case RootCrl():
            # One out of a document has its issuer beside it, since nothing else of that is kept.
            anchor = _signing_chain(answer if answer.chain else _given(voucher), roots, now)[-1]
            end, edition = _list(answer, anchor, "root_crl")
        case Rim(name):
            return _manifest_life(name, answer, roots, now)
        case _:
            assert_never(item)
    return Life(end, now + min((end - now) / 2, _REFRESH), edition)


def _manifest_life(
    name: ManifestName, answer: VendorAnswer, roots: Roots, now: dt.datetime
) -> Life:
    """A manifest stays what it is when its certificate ends, which the policy judges; from a month
    before that on one that was signed anew is looked for.
    """
    from agent.attestation.gpu.rim import read_manifest

    manifest = read_manifest(manifest_bytes(answer.body), roots.amd.nvidia_rim, now)
    if not manifest.is_of(name):
        raise _wrong(name.id, f"it is of {manifest.product} {manifest.version}")
    return Life(_FOR_GOOD, max(manifest.valid_until - _MONTH, now + _REFRESH))


def amd_issuers(answer: VendorAnswer) -> tuple[bytes, bytes]:
    """ASK and ARK, in DER, out of the vendor's PEM. Raises EvidenceError."""
    try:
        text = answer.body.decode("ascii")
    except UnicodeDecodeError as error:
        raise _wrong("amd-chain", "it is not PEM") from error
    found = split_pem(text, "amd-chain")
    if len(found) != 2:
        raise _wrong("amd-chain", f"it has {len(found)} certificates, not ASK and ARK")
    return found[0], found[1]


def chain_pem(answer: VendorAnswer) -> str:
    """The issuers' certificates out of the header."""
    return unquote(answer.chain)


def _list(
    answer: VendorAnswer, issuer: x509.Certificate, field: str
) -> tuple[dt.datetime, Edition]:
    """One of Intel's lists: its end, and which issue it is. One without an end is over."""
    crl = authentic_list(answer.body, issuer, field)
    edition = edition_of(crl)
    return crl.next_update_utc or crl.last_update_utc, Edition(0, *edition)


def _vcek_end(
    item: Vcek, answer: VendorAnswer, voucher: VendorAnswer | None, roots: Roots, now: dt.datetime
) -> dt.datetime:
    ask, ark = amd_issuers(_given(voucher))
    given = Endorsements(leaf=answer.body, ask=ask, ark=ark)
    chain = verify_amd_chain(given, Signer.VCEK, roots.amd, now)
    if chain.product is not item.product:
        raise _wrong("amd-vcek", f"it is of {chain.product}, not of {item.product}")
    require_hardware(item.chip_id, item.product, chain.leaf)
    require_tcb(decode_tcb(item.tcb, item.product, "reported TCB"), chain.leaf)
    return chain.valid_until


def _signed_document(
    answer: VendorAnswer,
    kind: type[_TcbInfoBody | _QeIdentityBody],
    roots: Roots,
    now: dt.datetime,
) -> tuple[_Dated, dt.datetime]:
    """The document, in date and signed over its very bytes; and its end."""
    try:
        body = decode_strict_json(answer.body, kind)
        dated = decode_strict_json(bytes(body.document), _Dated)
    except StrictJsonError as error:
        raise _wrong("intel", f"the document cannot be read: {error}") from error
    chain = _signing_chain(answer, roots, now)
    signature = bytes.fromhex(body.signature)
    if not signature_holds(ec_key(chain[0]), signature, bytes(body.document), hashes.SHA256()):
        raise _wrong("intel", "the document is not signed by its issuer chain's key")
    _require_time(dated.issue_date, dated.next_update, now, dated.id)
    return dated, min(dated.next_update, earliest_end(chain))


def _signing_chain(answer: VendorAnswer, roots: Roots, now: dt.datetime) -> Chain:
    rules = intel_rules(
        "tdx_signing_chain", "the issuer chain", 2, _TCB_SIGNING, roots.intel_spki_sha256
    )
    chain = load_chain(chain_pem(answer).encode("ascii", "replace"), rules)
    verify_chain(chain, rules, now)
    return chain


def _pck_issuer(
    answer: VendorAnswer, name: str, roots: Roots, now: dt.datetime
) -> tuple[x509.Certificate, x509.Certificate]:
    """The authority that signs the list, and the root; neither is the leaf of any chain."""
    rules = intel_rules("tdx_pck_crl_chain", "the issuer chain", 2, name, roots.intel_spki_sha256)
    issuer, root = load_chain(chain_pem(answer).encode("ascii", "replace"), rules)
    if spki_sha256(root) != roots.intel_spki_sha256:
        raise _wrong("pck-crl", "its issuer chain does not end in Intel's root")
    for certificate in (issuer, root):
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        _require_time(begin, end, now, "pck-crl's issuer chain")
        try:
            certificate.verify_directly_issued_by(root)
        except (InvalidSignature, *UNREADABLE) as error:
            raise _wrong("pck-crl", "its issuer chain does not hold") from error
    return issuer, root


def _given(voucher: VendorAnswer | None) -> VendorAnswer:
    if voucher is None:
        raise _wrong("collateral", "what it is authenticated with is not here")
    return voucher


def _require_time(begin: dt.datetime, end: dt.datetime, now: dt.datetime, what: str) -> None:
    if not begin <= now <= end:
        raise EvidenceError("collateral_expired", f"{what} is for {begin} to {end}")


def _wrong(what: str, why: str) -> EvidenceError:
    return EvidenceError("collateral_wrong", f"{what}: {why}")
