"""Attestation vectors of others: read where they lie beside the checkout, skipped elsewhere."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2].parent / "shared" / "vectors"
ABSENT = not ROOT.is_dir()
needs_vectors = pytest.mark.skipif(ABSENT, reason="../shared/vectors is not on this machine")


def read(path: str) -> bytes:
    return (ROOT / path).read_bytes()


def pem(path: str) -> list[bytes]:
    """DER certificates, in the file's order."""
    blocks = read(path).decode().split("-----BEGIN CERTIFICATE-----")[1:]
    return [base64.b64decode(block.split("-----END")[0]) for block in blocks]


def case_input(stage: str, name: str) -> dict[str, Any]:
    """What one conformance case gives a verifier."""
    given: dict[str, Any] = json.loads(read(f"conformance/{stage}/{name}/input.json"))
    return given
