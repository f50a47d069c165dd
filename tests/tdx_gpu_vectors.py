"""Public TDX and GPU vectors beside the checkout: read there, never copied."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.attestation.gpu.verify import GpuEvidence, decode_evidence
from agent.attestation.tdx.collateral import TdxCollateral, decode_collateral

VECTORS = Path(__file__).resolve().parents[2] / "shared" / "vectors"
CONFORMANCE = VECTORS / "conformance"

needs_vectors = pytest.mark.skipif(
    not VECTORS.is_dir(), reason="../shared/vectors, the public attestation vectors, is absent"
)
needs_blackwell = pytest.mark.skipif(
    not (VECTORS / "nvidia-gpu" / "blackwell_evidence.json").is_file(),
    reason="../shared/vectors/nvidia-gpu has no evidence of a genuine Blackwell",
)

PHALA_TIME = datetime(2025, 6, 25, tzinfo=UTC)
OUTDATED_TIME = datetime(2026, 2, 25, tzinfo=UTC)
GPU_TIME = datetime(2026, 2, 25, tzinfo=UTC)


def tdx_quote(name: str) -> bytes:
    return (VECTORS / "tdx" / f"{name}.quote.bin").read_bytes()


def tdx_collateral(name: str) -> TdxCollateral:
    return decode_collateral((VECTORS / "tdx" / f"{name}.collateral.json").read_bytes())


def gpu_evidence(name: str) -> tuple[GpuEvidence, ...]:
    return decode_evidence((VECTORS / "nvidia-gpu" / f"{name}.json").read_bytes())


def board_evidence() -> tuple[tuple[GpuEvidence, ...], tuple[GpuEvidence, ...]]:
    """Eight GPUs and the four switches between them, over one nonce."""
    place = VECTORS / "nvidia-board"
    gpus, switches = (place / f"{kind}_evidence.json" for kind in ("gpu", "switch"))
    return decode_evidence(gpus.read_bytes()), decode_evidence(switches.read_bytes())


def gpu_evidence_with_invalid_signature() -> GpuEvidence:
    stem = VECTORS / "nvidia-gpu" / "hopper-invalid-signature"
    report = bytes.fromhex(stem.with_suffix(".report.hex").read_text().strip())
    return GpuEvidence(
        arch="HOPPER",
        certificate=base64.b64encode(stem.with_suffix(".chain.pem").read_bytes()).decode(),
        evidence=base64.b64encode(report).decode(),
        nonce=report[4:36].hex(),
    )
