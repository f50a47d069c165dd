"""Keeps the fleet's certificates as their files are: read again when they change, problems told.

A change that cannot be used changes nothing: what was read before stays in force, and a problem
says why. The agent itself never ends because of a certificate.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from agent.config import TlsConfig
from agent.errors import describe
from agent.host.files import FileAbsentError, StorageError, read_bounded, write_atomic
from agent.host.wake import Wake
from agent.pki.facts import Facts, ListMark, TrustError
from agent.pki.tls_contexts import TlsContexts, make_tls_contexts
from agent.pki.x509_client import X509ClientError, inspect

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
_MAX_MARKS = 1 << 20
_CRL_WARNING = dt.timedelta(days=3)
_CERTIFICATE_WARNING = dt.timedelta(days=7)
_UNUSABLE, _ENDING = "trust/unusable", "trust/ending"

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Problems(Protocol):
    """Where a person is told what to mend."""

    def raise_problem(
        self, key: str, *, code: str, severity: str, detail: str, mend: str
    ) -> bool: ...

    def clear_problem(self, key: str) -> None: ...


class FleetCertificates:
    """The newest good material. `changed` is rung whenever it was read anew.

    `marks`: a file that says, over restarts, which lists of revoked certificates were read.
    """

    def __init__(
        self,
        tls: TlsConfig,
        host_id: str,
        problems: Problems,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        read: Callable[[TlsConfig, str], Awaitable[Facts]] = inspect,
        *,
        marks: Path | None = None,
    ) -> None:
        self.tls = tls
        self.host_id = host_id
        self.changed = Wake()
        self.material: TlsContexts | None = None
        self._problems = problems
        self._now = now
        self._inspect = read
        self._stamp: _Stamp | None = None
        self._marks = marks
        self._lists: dict[str, ListMark] | None = None

    def server_context(self) -> ssl.SSLContext | None:
        """For the next handshake; None while there are no certificates."""
        return self.material.server if self.material else None

    async def keep(self) -> None:
        """Look for changes, for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Read the files again if one of them is another than before; tell what ends soon."""
        stamp = self._stamps()
        if stamp != self._stamp:
            await self._read(stamp)
        if self.material is not None:
            self._tell_ends(self.material)

    async def _read(self, stamp: _Stamp) -> None:
        """Files that change while they are read are read once more at the next look."""
        try:
            facts = await self._inspect(self.tls, self.host_id)
            newest = facts.newest(await self._read_before())
            material = await asyncio.to_thread(make_tls_contexts, self.tls, facts)
        except TrustError as error:
            if stamp == self._stamps():
                self._stamp = stamp
                self._tell_unusable(error)
            return
        except (
            X509ClientError
        ) as error:  # no fault of the files: they are read again at the next look
            self._tell_unusable(error)
            return
        if stamp != self._stamps():
            return
        await self._keep_marks(newest)
        self._stamp = stamp
        self.material = material
        self._problems.clear_problem(_UNUSABLE)
        log.info("certificates read", extra={"until": str(material.facts.until)})
        self.changed.notify()

    async def _read_before(self) -> dict[str, ListMark]:
        """The lists that were read before, also by an agent before this one."""
        if self._lists is None:
            self._lists = await asyncio.to_thread(_read_marks, self._marks)
        return self._lists

    async def _keep_marks(self, newest: dict[str, ListMark]) -> None:
        """What cannot be written is tried again with the next list; it holds until a restart."""
        if newest == self._lists:
            return
        self._lists = newest
        if self._marks is not None:
            try:
                await asyncio.to_thread(write_atomic, self._marks, msgspec.json.encode(newest))
            except StorageError as error:
                log.warning("not kept which lists were read: %s", error)

    def _stamps(self) -> _Stamp:
        paths = (self.tls.certificate, self.tls.key, self.tls.ca, self.tls.crl)
        return tuple(None if path is None else _stamp(path) for path in paths)

    def _tell_unusable(self, error: TrustError | X509ClientError) -> None:
        kept = "what was read before stays in force" if self.material else "RPC is off until then"
        news = self._problems.raise_problem(
            _UNUSABLE,
            code=error.code,
            severity="error",
            detail=f"{describe(error)}; {kept}",
            mend="mend the file; it is read again within a second or two",
        )
        if news:
            log.warning("certificates cannot be used: %s", describe(error))

    def _tell_ends(self, material: TlsContexts) -> None:
        """Days ahead, so that somebody can act; an end that has come is an error."""
        facts = material.facts
        span = (facts.since, facts.until)
        self._tell_end("certificate", "this agent's certificate", span, _CERTIFICATE_WARNING)
        listed = (facts.crl_since, facts.crl_until)
        self._tell_end("crl", "the list of revoked certificates", listed, _CRL_WARNING)

    def _tell_end(
        self,
        word: str,
        what: str,
        span: tuple[dt.datetime | None, dt.datetime | None],
        ahead: dt.timedelta,
    ) -> None:
        """What lives shortly is warned of in the last third of its life."""
        key = f"{_ENDING}/{word}"
        since, until = span
        now = self._now()
        if since is None or until is None or now < until - min(ahead, (until - since) / 3):
            self._problems.clear_problem(key)
            return
        over = now >= until
        effect = "; no peer is let in" if over else ""
        self._problems.raise_problem(
            key,
            code=f"{word}_{'expired' if over else 'expiring'}",
            severity="error" if over else "warning",
            detail=f"{what} {'ended' if over else 'ends'} at {until:%Y-%m-%dT%H:%M:%SZ}{effect}",
            mend=f"put a new one at {getattr(self.tls, word)}",
        )


def _read_marks(path: Path | None) -> dict[str, ListMark]:
    """None were read, as far as is known, where the file is not there or says nothing."""
    if path is None:
        return {}
    try:
        return msgspec.json.decode(read_bounded(path, _MAX_MARKS), type=dict[str, ListMark])
    except FileAbsentError:
        return {}
    except (StorageError, msgspec.DecodeError) as error:
        log.warning("not known which lists were read before: %s", error)
        return {}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
