"""A bare nft transaction: one element of a map replaced, in a table that nothing else knows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

_KEY = 8080


class BareNft:
    """The baseline of a switch: what one transaction costs whoever spawns nft for it."""

    def __init__(self, table: str) -> None:
        self._at = {"family": "inet", "table": table, "name": "endpoints"}
        self._turn = 0

    async def times(self, count: int) -> list[float]:
        """Seconds of so many transactions, each from the spawn to nft's end."""
        return await asyncio.to_thread(lambda: [self._once() for _ in range(count)])

    def _once(self) -> float:
        old, new = self._address(self._turn), self._address(self._turn + 1)
        self._turn += 1
        commands = [
            {"delete": {"element": {**self._at, "elem": [[_KEY, old]]}}},
            {"add": {"element": {**self._at, "elem": [[_KEY, new]]}}},
        ]
        text = _document(commands)
        began = time.perf_counter()
        subprocess.run(["nft", "-j", "-f", "-"], input=text, check=True, capture_output=True)
        return time.perf_counter() - began

    @staticmethod
    def _address(turn: int) -> str:
        return f"192.0.2.{1 + turn % 2}"


@contextlib.asynccontextmanager
async def bare_nft(table: str) -> AsyncIterator[BareNft]:
    """With its table, which goes with the block."""
    nft = BareNft(table)
    where = {"family": "inet", "table": table}
    types = {"type": "inet_service", "map": "ipv4_addr"}
    whole = {"table": {"family": "inet", "name": table}}
    _nft(
        [
            {"add": whole},
            {"add": {"map": {**where, "name": "endpoints", **types}}},
            {"add": {"element": {**where, "name": "endpoints", "elem": [[_KEY, "192.0.2.1"]]}}},
        ]
    )
    try:
        yield nft
    finally:
        _nft([{"delete": whole}])


def _nft(commands: Sequence[dict[str, Any]]) -> None:
    subprocess.run(["nft", "-j", "-f", "-"], input=_document(commands), check=True)


def _document(commands: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps({"nftables": commands}).encode()
