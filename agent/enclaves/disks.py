"""The guest's two config disks: raw bytes, NUL-padded to whole blocks. Pure.

Invariant: a guest that strips the padding gets the payload byte for byte. The external one holds
secrets: who makes a disk of these bytes keeps them in memory, and no error here quotes a payload.
"""

from __future__ import annotations

from agent.errors import AgentError

PAYLOAD_MAX_BYTES = 1 << 20
BLOCK_BYTES = 4096


class ConfigDiskError(AgentError):
    """A payload that a config disk cannot carry."""

    @property
    def code(self) -> str:
        return "config_disk_invalid"


def disk_bytes(payload: bytes) -> bytes:
    """The disk of this payload: padded to whole blocks, one at least. Raises ConfigDiskError."""
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise ConfigDiskError(
            f"a config disk carries at most {PAYLOAD_MAX_BYTES} bytes, not {len(payload)}"
        )
    if payload.endswith(b"\0"):
        raise ConfigDiskError("a payload that ends in NUL cannot be told from its padding")
    blocks = max(1, -(-len(payload) // BLOCK_BYTES))
    return payload.ljust(blocks * BLOCK_BYTES, b"\0")
