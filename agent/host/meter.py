"""A bound on what a peer may send over one connection at a time, whatever it calls it.

A parser bounds bodies and headers, but not endless interim answers or chunk extensions; each costs
the time of all other tasks. Stands between the transport and the protocol that reads from it.
"""

from __future__ import annotations

import asyncio


class Meter(asyncio.Protocol):
    """Passes everything on to `inner`, and drops the connection after `limit` bytes."""

    def __init__(self, inner: asyncio.Protocol, transport: asyncio.Transport, limit: int) -> None:
        self._inner = inner
        self._transport = transport
        self._left = limit
        self._limit = limit

    @classmethod
    def put_on(cls, transport: asyncio.Transport, limit: int) -> Meter:
        """The meter of this connection, which is put on if there is none yet."""
        inner = transport.get_protocol()
        if isinstance(inner, cls):
            return inner
        assert isinstance(inner, asyncio.Protocol)
        meter = cls(inner, transport, limit)
        transport.set_protocol(meter)
        return meter

    def renew(self) -> None:
        """Give it the whole limit again."""
        self._left = self._limit

    @property
    def exceeded(self) -> str | None:
        """What to say of a connection that was dropped for it."""
        return f"it sent more than {self._limit} bytes" if self._left < 0 else None

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.abort()
        else:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()
