"""Records of TLS 1.3 made by hand, for what no library sends: KeyUpdates, as many as one likes.

The handshake is Python's own; the secrets come by its key log (RFC 8446, sections 4.6.3, 5, 7).
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

_APPLICATION, _HANDSHAKE = 23, 22
_KEY_UPDATE = b"\x18\x00\x00\x01"
_READ = 1 << 16
_SUITES: dict[str, tuple[type[hashes.HashAlgorithm], int]] = {
    "TLS_AES_256_GCM_SHA384": (hashes.SHA384, 32),
    "TLS_AES_128_GCM_SHA256": (hashes.SHA256, 16),
}


class Records:
    """What a client sends after its handshake, encrypted as it should be."""

    def __init__(self, suite: str, secret: bytes) -> None:
        self._hash, self._key_bytes = _SUITES[suite]
        self._use(secret)

    def _use(self, secret: bytes) -> None:
        self._secret, self._sequence = secret, 0
        self._key = AESGCM(self._expand(b"key", self._key_bytes))
        self._iv = int.from_bytes(self._expand(b"iv", 12))

    def _expand(self, label: bytes, length: int) -> bytes:
        label = b"tls13 " + label
        info = struct.pack("!HB", length, len(label)) + label + b"\0"
        return HKDFExpand(self._hash(), length, info).derive(self._secret)

    def record(self, content: bytes, kind: int = _APPLICATION) -> bytes:
        """One record."""
        inner = content + bytes([kind])
        head = struct.pack("!BHH", _APPLICATION, 0x0303, len(inner) + 16)
        nonce = (self._iv ^ self._sequence).to_bytes(12)
        self._sequence += 1
        return head + self._key.encrypt(nonce, inner, head)

    def key_update(self, *, answer: bool) -> bytes:
        """One record that is nothing else; `answer`: the other side has to send one, too."""
        made = self.record(_KEY_UPDATE + bytes([answer]), _HANDSHAKE)
        self._use(self._expand(b"traffic upd", self._hash().digest_size))
        return made


async def connect(
    context: ssl.SSLContext, address: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, Records]:
    """A plain connection, its handshake over; what comes is not decrypted. Changes the context's
    key log.
    """
    reader, writer = await asyncio.open_connection(address, port)
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "keys"
        context.keylog_filename = str(log)
        coming, going = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(coming, going)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                writer.write(going.read())
                coming.write(await reader.read(_READ))
        writer.write(going.read())
        lines = [line.split() for line in log.read_text().splitlines()]
    secret = next(words[2] for words in lines if words[0] == "CLIENT_TRAFFIC_SECRET_0")
    cipher = tls.cipher()
    assert cipher is not None
    return reader, writer, Records(cipher[0], bytes.fromhex(secret))
