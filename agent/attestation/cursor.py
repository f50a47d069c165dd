"""A strict reader of binary evidence: front to back, never past the end, nothing left over."""

from __future__ import annotations

from agent.attestation.evidence import EvidenceError


class Cursor:
    """Reads `data` once. Every refusal has the code given here and names the field."""

    def __init__(self, data: bytes, *, what: str, code: str) -> None:
        self._data = data
        self._what = what
        self._code = code
        self._at = 0

    @property
    def position(self) -> int:
        """Bytes read so far."""
        return self._at

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._at

    def take(self, size: int, field: str) -> bytes:
        """The next `size` bytes."""
        if size > self.remaining:
            raise EvidenceError(
                self._code,
                f"{self._what} ends inside {field}: {size} bytes needed at offset {self._at}, "
                f"{self.remaining} there",
            )
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def number(self, size: int, field: str) -> int:
        """The next `size` bytes as a little-endian unsigned number."""
        return int.from_bytes(self.take(size, field), "little")

    def end(self, code: str) -> None:
        """Nothing may be left."""
        if self.remaining:
            raise EvidenceError(
                code, f"{self._what} has {self.remaining} bytes after its end at {self._at}"
            )
