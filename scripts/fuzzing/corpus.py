"""What is kept of fuzzing, and where.

Inputs that raised what they must not are files in tests/attestation/corpus/ENTRY; those that
together reach all that was ever reached are lines of base64 in a file of the entry's name in
tests/attestation/reached. Tests replay both. What a machine found beyond is in .cache/fuzz/ENTRY.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from scripts.fuzzing.entries import ENTRIES

ROOT = Path(__file__).resolve().parents[2]
RAISED = ROOT / "tests" / "attestation" / "corpus"
REACHED = ROOT / "tests" / "attestation" / "reached"
FOUND = ROOT / ".cache" / "fuzz"
MAX_KEPT_BYTES = 2048  # of one input: what is kept is read by people, too
_NAMES = tuple(ENTRIES)


def reached(name: str) -> list[bytes]:
    """The inputs that are kept of an entry."""
    path = REACHED / f"{name}.b64"
    return [base64.b64decode(line) for line in path.read_text().split()] if path.exists() else []


def keep(name: str, inputs: Iterable[bytes]) -> int:
    """Replace what is kept of an entry; returns how many there are."""
    small = sorted({one for one in inputs if 0 < len(one) <= MAX_KEPT_BYTES}, key=_order)
    REACHED.mkdir(exist_ok=True)
    lines = "".join(f"{base64.b64encode(one).decode()}\n" for one in small)
    (REACHED / f"{name}.b64").write_text(lines)
    return len(small)


def _order(data: bytes) -> tuple[int, bytes]:
    return len(data), data


def raised(name: str, data: bytes) -> Path:
    """Keep an input that raised what it must not."""
    path = RAISED / name / f"crash-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def addressed(name: str, data: bytes) -> bytes:
    """An input for all entries in one process: the first byte says whose it is."""
    return bytes([_NAMES.index(name)]) + data


def addressee(data: bytes) -> tuple[str, bytes]:
    """Whose input it is, and what is for it. Any bytes are somebody's, but for none."""
    return _NAMES[data[0] % len(_NAMES)], data[1:]
