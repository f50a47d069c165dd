"""Events: every transition and every host action on an enclave, chained by hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec


class EventDraft(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An event before it has its place in the chain. `from_` and `to` are states' names.

    `actor`: who asked for it, with the epoch that a coordinator said; `agent` if nobody did.
    """

    kind: str
    deployment: str | None = None
    enclave: str | None = None
    update: str | None = None
    gpu: str | None = None
    from_: str | None = msgspec.field(name="from", default=None)
    to: str | None = None
    reason: str | None = None
    actor: str = "agent"
    epoch: int | msgspec.UnsetType = msgspec.UNSET


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One link: `hash` is SHA-256 (hex) over the canonical JSON of the event without `hash`.

    Canonical JSON: keys sorted, no spaces, UTF-8. `previous` is the hash before it, 64 zeros for
    the first. `at` is RFC 3339 UTC.
    """

    sequence: int
    at: str
    kind: str
    deployment: str | None
    enclave: str | None
    update: str | None
    gpu: str | None
    from_: str | None = msgspec.field(name="from")
    to: str | None
    reason: str | None
    actor: str
    previous: str
    hash: str
    epoch: int | msgspec.UnsetType = msgspec.UNSET


GENESIS = "0" * 64
STORE_RESTORED = "store_restored"  # the one kind before which sequences may be missing


def chain(draft: EventDraft, *, sequence: int, at: str, previous: str) -> Event:
    """Put a draft at its place in the chain."""
    body: dict[str, Any] = {
        **msgspec.to_builtins(draft),
        "sequence": sequence,
        "at": at,
        "previous": previous,
    }
    return msgspec.convert({**body, "hash": hash_of(body)}, Event)


def hash_of(body: dict[str, Any]) -> str:
    """The hash of an event's members; a member `hash` is left out."""
    members = {name: value for name, value in body.items() if name != "hash"}
    text = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
