"""Evidence of TDX and of GPUs, judged again and again, beside bare signatures.

Warm: certificates, revocation lists and documents of the vendor were seen before, as in every
re-verification. Cold: nothing was. Genuine evidence where it lies beside the checkout, else that
of vendors made for the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import ModuleType

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation import pinned_chain
from agent.attestation.gpu import rim
from agent.attestation.gpu.verify import decode_evidence, verify_gpus
from agent.attestation.roots import NVIDIA_RIM_ROOT
from agent.attestation.tdx import documents, revocation, tcb
from agent.attestation.tdx.collateral import decode_collateral
from agent.attestation.tdx.verify import verify_quote
from bench.figures import Bound, Figure, median
from bench.place import ROOT
from tests.fakes import intel, nvidia, nvidia_rim

VECTORS = ROOT.parent / "shared" / "vectors"
GENUINE = VECTORS.is_dir()
TDX_MS, GPU_MS, RIM_MS = 1.2, 2.5, 0.2
TIMES = 400
# Verifications of our own steps, without those of dcap-qvl: quote and QE report; with the chains
# of PCK and TCB signing (the root once), two revocation lists, two documents.
_TDX_WARM, _TDX_COLD = 2, 10
_GPU_WARM, _GPU_COLD = 1, 6  # the report; with five certificates
_RIM_WARM, _RIM_COLD = 0, 5  # nothing anew; the manifest with four certificates

_CACHING: tuple[ModuleType, ...] = (pinned_chain, documents, revocation, tcb, rim)


def measure_vendors() -> tuple[list[Figure], list[str]]:
    """Figures and notes. Never waits: meant for a thread."""
    figures = []
    p256, p384 = _bare(ec.SECP256R1(), hashes.SHA256()), _bare(ec.SECP384R1(), hashes.SHA384())
    for what, call, limit, bare, counts in (
        ("TDX quote with collateral", _tdx(), TDX_MS, p256, (_TDX_WARM, _TDX_COLD)),
        ("one GPU", _gpu(), GPU_MS, p384, (_GPU_WARM, _GPU_COLD)),
        ("a reference manifest", _rim(), RIM_MS, p384, (_RIM_WARM, _RIM_COLD)),
    ):
        for state, count, cold in (("warm", counts[0], False), ("cold", counts[1], True)):
            figures.append(
                Figure(
                    f"{what}, {state}",
                    _median_ms(call, cold=cold),
                    "ms",
                    baseline=count * bare if count else None,
                    baseline_is=f"{count} bare verifications of {bare:.3f} ms" if count else "",
                    bound=None if cold else Bound(limit),
                )
            )
    source = "genuine" if GENUINE else "made for the run: ../shared/vectors is absent"
    return figures, [
        f"evidence of TDX and of the GPU, and the manifest: {source}",
        "TDX includes dcap-qvl's own verification of everything, every time",
    ]


def _tdx() -> Callable[[], object]:
    if not GENUINE:
        vendor = intel.FakeIntel()
        made, given = vendor.quote(), vendor.collateral()
        return lambda: verify_quote(made, given, intel.NOW, root_spki_sha256=vendor.root)
    quote = (VECTORS / "tdx" / "phala.quote.bin").read_bytes()
    collateral = decode_collateral((VECTORS / "tdx" / "phala.collateral.json").read_bytes())
    now = datetime(2025, 6, 25, tzinfo=UTC)
    return lambda: verify_quote(quote, collateral, now)


def _gpu() -> Callable[[], object]:
    if not GENUINE:
        vendor = nvidia.FakeNvidia()
        made = [vendor.device("NVIDIA:GH100:48B02DF44660DA06").evidence()]
        return lambda: verify_gpus(made, nvidia.NONCE, 1, nvidia.NOW, root_spki_sha256=vendor.root)
    items = decode_evidence((VECTORS / "nvidia-gpu" / "hopper_evidence.json").read_bytes())
    nonce, now = bytes.fromhex(items[0].nonce), datetime.now(UTC)
    return lambda: verify_gpus(items, nonce, 1, now)


def _rim() -> Callable[[], object]:
    if not GENUINE:
        signer = nvidia_rim.FakeRimSigner()
        made = signer.manifest(nvidia_rim.VBIOS_GOLDEN)
        return lambda: rim.read_manifest(made, signer.root, nvidia.NOW)
    data = (VECTORS / "nvidia-rim" / "vbios-1010_0200_882_96005E0001.swidtag").read_bytes()
    now = datetime(2025, 1, 1, tzinfo=UTC)
    return lambda: rim.read_manifest(data, NVIDIA_RIM_ROOT, now)


def _bare(curve: ec.EllipticCurve, digest: hashes.HashAlgorithm) -> float:
    key = ec.generate_private_key(curve)
    signature = key.sign(b"evidence", ec.ECDSA(digest))
    public = key.public_key()
    return _median_ms(lambda: public.verify(signature, b"evidence", ec.ECDSA(digest)), cold=False)


def _median_ms(call: Callable[[], object], *, cold: bool) -> float:
    call()
    times: list[float] = []
    for _ in range(TIMES):
        if cold:
            _forget()
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * median(times)


def _forget() -> None:
    """What the verifiers remember of certificates and documents that held."""
    for module in _CACHING:
        for value in vars(module).values():
            if callable(clear := getattr(value, "cache_clear", None)):
                clear()
