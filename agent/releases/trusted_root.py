"""A Sigstore trusted root, narrowed to what one signature may rest on. Pure.

Source: trusted root 0.1 of Sigstore's protobuf specifications. The library takes every key of the
file, whenever it was valid, and tries all logs' keys for an entry of a log that it does not know.
Invariant: what `narrow` returns holds the very logs that the bundle names, and authorities, all of
them valid when it was signed: a key that was retired signs nothing afterwards.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from agent.releases.sigstore_json import BundleError, read_json


@dataclass(frozen=True, slots=True)
class Used:
    """What a signature rests on. `moments`: when it was made, by every clock that vouches for it.

    `promised`: the certificate's log → when it was logged there.
    """

    log: bytes
    promised: dict[bytes, dt.datetime]
    moments: tuple[dt.datetime, ...]


_Moment = Annotated[dt.datetime, msgspec.Meta(tz=True)]


class _Window(msgspec.Struct, frozen=True, rename="camel"):
    start: _Moment | None = None
    end: _Moment | None = None

    def covers(self, moments: Sequence[dt.datetime]) -> bool:
        """Both ends belong to it, as in a certificate."""
        return all(
            (self.start is None or self.start <= at) and (self.end is None or at <= self.end)
            for at in moments
        )


class _Key(msgspec.Struct, frozen=True, rename="camel"):
    valid_for: _Window = _Window()


class _LogId(msgspec.Struct, frozen=True, rename="camel"):
    key_id: str


class _Log(msgspec.Struct, frozen=True, rename="camel"):
    public_key: _Key
    log_id: _LogId


class _Authority(msgspec.Struct, frozen=True, rename="camel"):
    valid_for: _Window = _Window()


def narrow(root: bytes, used: Used) -> bytes:
    """Raises BundleError `trusted_root`, `log_unknown`, `sct_log_unknown`, `certificate_chain`."""
    whole = read_json(root, dict[str, Any], "it", code="trusted_root")

    def in_force(log: _Log) -> bool:
        return _id(log) == used.log and log.public_key.valid_for.covers(used.moments)

    def promises(log: _Log) -> bool:
        at = used.promised.get(_id(log))
        return at is not None and log.public_key.valid_for.covers([at])

    def issues(authority: _Authority) -> bool:
        return authority.valid_for.covers(used.moments)

    for member, kind, wanted, code, what in (
        ("tlogs", _Log, in_force, "log_unknown", f"no log {used.log.hex()[:16]}…"),
        ("ctlogs", _Log, promises, "sct_log_unknown", "no log of its certificate"),
        ("certificateAuthorities", _Authority, issues, "certificate_chain", "no authority"),
    ):
        whole[member] = _kept(whole.get(member) or [], kind, wanted, member)
        if not whole[member]:
            raise BundleError(code, f"the trusted root has {what} that was valid when it signed")
    return json.dumps(whole).encode()


def _kept(entries: Any, kind: type[Any], wanted: Callable[[Any], bool], member: str) -> list[Any]:
    try:
        read = msgspec.convert(entries, list[kind])  # type: ignore[valid-type]  # one of ours
    except msgspec.ValidationError as error:
        raise BundleError("trusted_root", f"{member} cannot be read: {error}") from error
    return [entry for entry, one in zip(entries, read, strict=True) if wanted(one)]


def _id(log: _Log) -> bytes:
    try:
        return base64.b64decode(log.log_id.key_id, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BundleError("trusted_root", "a log's keyId is not base64") from error
