"""Reference manifests as NVIDIA's service answers, or as an operator has them in a file. Pure.

Source: NVIDIA RIM service, version 1: an object whose member `rim` is the manifest in base64. What
begins otherwise is the manifest itself.
"""

from __future__ import annotations

import msgspec

from agent.attestation.evidence import EvidenceError
from agent.strict_json import StrictJsonError, decode_strict_json


class _Answer(msgspec.Struct, frozen=True):
    """Nothing else of it is needed: the manifest is signed."""

    rim: bytes


def manifest_bytes(body: bytes) -> bytes:
    """The signed document. Raises EvidenceError `collateral_wrong`."""
    if body.lstrip()[:1] != b"{":
        return body
    try:
        return decode_strict_json(body, _Answer).rim
    except StrictJsonError as error:
        raise EvidenceError(
            "collateral_wrong", "nvidia-rim: the answer has no manifest"
        ) from error
