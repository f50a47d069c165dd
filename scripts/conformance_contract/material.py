"""Vendors' certificates that the contract expects a verifier to have with it.

This project pins keys and gets certificates with the evidence. Where an input brings none they are
read from the public vectors beside the checkout, or from `CONFORMANCE_VECTORS`. They only can be
believed under the pinned roots.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.attestation.collateral import split_pem
from agent.attestation.tdx.collateral import TdxCollateral, decode_collateral
from scripts.conformance_contract.outcome import Unsupported

_BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
# By the name in the leaf: the files of the chains for VCEKs and for VLEKs.
_PRODUCTS = {
    b"Milan": ("milan", "milan_vlek"),
    b"Genoa": ("genoa", "genoa_vlek"),
    b"Turin": ("turin_vcek", "turin_vlek"),
}


def amd_chain(leaf: bytes) -> tuple[bytes, bytes]:
    """ASK and ARK of the product and kind of key that the leaf's issuer is named after."""
    product = next((name for name in _PRODUCTS if name in leaf), b"Genoa")
    file = _PRODUCTS[product][b"SEV-VLEK-" in leaf]
    ask, ark = split_pem(_read(f"roots/ask_ark_{file}.pem").decode(), "AMD's chain")
    return ask, ark


def intel_collateral() -> TdxCollateral:
    """A genuine one, for the chain of the key that signs Intel's documents."""
    return decode_collateral(_read("tdx/phala.collateral.json"))


def _read(path: str) -> bytes:
    directory = Path(os.environ.get("CONFORMANCE_VECTORS") or _BESIDE)
    try:
        return (directory / path).read_bytes()
    except OSError as error:
        raise Unsupported(
            f"the input brings no certificates, and {directory / path} cannot be read: "
            f"{error.strerror}"
        ) from error
