"""NVIDIA's evidence in, claims out; or a refusal that says which device, which part, and why.

Invariant: claims exist only where every device's report is signed by a key whose chain ends in the
pinned root at `now`, over the nonce that was asked for. Whether the firmware is NVIDIA's is for
`golden.py` to say; that revocation is not looked at (OCSP), for the checks.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from datetime import datetime

import msgspec
from cryptography.hazmat.primitives import hashes

from agent.attestation.ecdsa import signature_holds
from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.board import read_board
from agent.attestation.gpu.checks import device_checks
from agent.attestation.gpu.claims import DeviceKind, GpuClaims
from agent.attestation.gpu.identity import DeviceIdentity, read_identity
from agent.attestation.gpu.rim_names import manifest_names
from agent.attestation.gpu.spdm import MeasurementReport, parse_report
from agent.attestation.pinned_chain import ChainRules, ec_key, load_chain, verify_chain
from agent.attestation.roots import NVIDIA_ROOT
from agent.strict_json import StrictJsonError, decode_strict_json

MAX_DEVICES = 32
MAX_EVIDENCE_BYTES = 2 << 20

# Opaque fields, by NVIDIA's numbers.
_DRIVER_VERSION = 3
_VBIOS_VERSION = 6
_FWID = 20

_NONCE = re.compile(r"[0-9a-f]{64}")
_PRINTABLE = re.compile(rb"[!-~]{1,32}\0*")


class GpuEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """One device's evidence as NVIDIA's tools write it. Base64, the certificates of PEM inside.

    Newer collectors write more beside it (`version`, `driver_version`, `vbios_version`): nothing
    vouches for that, the report says the same signed, and it is not read.
    """

    arch: str
    certificate: str
    evidence: str
    nonce: str


def decode_evidence(raw: bytes) -> tuple[GpuEvidence, ...]:
    """From the JSON list that NVIDIA's tools write; raises `gpu_malformed`, with the member."""
    if len(raw) > MAX_EVIDENCE_BYTES:
        raise EvidenceError("gpu_malformed", f"more than {MAX_EVIDENCE_BYTES} bytes of evidence")
    try:
        return decode_strict_json(raw, tuple[GpuEvidence, ...])
    except StrictJsonError as error:
        raise EvidenceError("gpu_malformed", str(error)) from error


def verify_gpus(
    items: Sequence[GpuEvidence],
    nonce: bytes,
    expected_count: int,
    now: datetime,
    *,
    root_spki_sha256: str = NVIDIA_ROOT,
) -> tuple[GpuClaims, ...]:
    """Verify every device, in order; `now` is aware.

    Raises EvidenceError unless all hold over `nonce`, no two are the same device, and there are
    exactly `expected_count` GPUs; switches are verified alike and not counted.
    """
    claims = verify_devices(items, now, root_spki_sha256=root_spki_sha256)
    for check in device_checks(claims, nonce, expected_count):
        if not check.passed:
            raise EvidenceError(check.code, check.detail)
    return claims


def verify_devices(
    items: Sequence[GpuEvidence],
    now: datetime,
    *,
    root_spki_sha256: str = NVIDIA_ROOT,
) -> tuple[GpuClaims, ...]:
    """Claims of every device by itself: over which nonce, and which devices, is not judged."""
    if len(items) > MAX_DEVICES:
        raise EvidenceError(
            "gpu_count", f"evidence of {len(items)} devices, at most {MAX_DEVICES}"
        )
    return tuple(
        _verify_device(index, item, now, root_spki_sha256) for index, item in enumerate(items)
    )


def _verify_device(index: int, item: GpuEvidence, now: datetime, root: str) -> GpuClaims:
    try:
        return _claims(*_verify_report(item, now, root), simulated=root != NVIDIA_ROOT)
    except EvidenceError as error:
        raise EvidenceError(error.code, f"device {index}: {error}") from error


def _verify_report(
    item: GpuEvidence, now: datetime, root: str
) -> tuple[MeasurementReport, DeviceIdentity]:
    report = parse_report(_base64(item.evidence, "evidence"))
    rules = ChainRules(
        prefix="gpu_chain",
        what="the certificate chain",
        root_spki_sha256=root,
        curve="secp384r1",
        digest="sha384",
        lengths=range(3, 9),
    )
    chain = load_chain(_base64(item.certificate, "certificate"), rules)
    verify_chain(chain, rules, now)
    if not signature_holds(ec_key(chain[0]), report.signature, report.signed, hashes.SHA384()):
        raise EvidenceError("gpu_signature", "the report is not signed by its certificate's key")
    identity = read_identity(chain)
    if item.arch != identity.architecture:
        raise EvidenceError(
            "gpu_architecture",
            f"arch is {item.arch!r}, and the certificate is of {identity.architecture}",
        )
    if _NONCE.fullmatch(item.nonce) is None or bytes.fromhex(item.nonce) != report.nonce:
        raise EvidenceError(
            "gpu_nonce", f"the nonce beside the report is not its own, {report.nonce.hex()}"
        )
    return report, identity


def _claims(report: MeasurementReport, identity: DeviceIdentity, *, simulated: bool) -> GpuClaims:
    gpu = identity.kind is DeviceKind.GPU
    fwid = report.opaque.get(_FWID)
    if fwid is not None and fwid != identity.fwid:
        raise EvidenceError(
            "gpu_fwid",
            f"the report is of firmware {fwid.hex()}, the certificate is for "
            f"{identity.fwid.hex() if identity.fwid else 'none that it states in a known form'}",
        )
    raw = _opaque(report, _VBIOS_VERSION)
    vbios = _gpu_vbios(raw) if gpu else _text(raw, "VBIOS")
    driver = _text(_opaque(report, _DRIVER_VERSION), "driver") if gpu else None
    return GpuClaims(
        kind=identity.kind,
        architecture=identity.architecture,
        chip=identity.chip,
        device=identity.device,
        identity=identity.key,
        nonce=report.nonce,
        measurements=report.measurements,
        fwid=fwid,
        vbios_version=vbios,
        driver_version=driver,
        simulated=simulated,
        manifests=manifest_names(identity, report.opaque, driver, vbios),
        board=read_board(report.opaque, identity.kind),
        id=identity.id,
    )


def _opaque(report: MeasurementReport, number: int) -> bytes:
    if number not in report.opaque:
        raise EvidenceError("gpu_opaque_data", f"opaque field {number} is missing")
    return report.opaque[number]


def _text(value: bytes, what: str) -> str:
    if _PRINTABLE.fullmatch(value) is None:
        raise EvidenceError("gpu_opaque_data", f"the {what} version is no printable text")
    return value.rstrip(b"\0").decode("ascii")


def _gpu_vbios(value: bytes) -> str:
    """Two little-endian words, of which five bytes are the version: 96.00.A5.00.01."""
    if len(value) != 8:
        raise EvidenceError("gpu_opaque_data", "the VBIOS version must have 8 bytes")
    return ".".join(f"{byte:02X}" for byte in (*value[3::-1], value[4]))


def _base64(text: str, field: str) -> bytes:
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EvidenceError("gpu_malformed", f"{field} is not base64") from error
    if base64.b64encode(value).decode() != text:
        raise EvidenceError("gpu_malformed", f"{field} is not canonical base64")
    return value
