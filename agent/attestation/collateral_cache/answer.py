"""What a vendor answered to one question, and for how long that is good."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import msgspec

MAX_BODY_BYTES = 256 * 1024
MAX_CHAIN_CHARS = 32 * 1024


class VendorAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body as it came, and the header with the issuers' certificates (percent-encoded PEM)."""

    body: bytes
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Life:
    """Until when an answer counts, and from when on a newer one is to be had (None: never)."""

    ends_at: dt.datetime
    refresh_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class AuthenticatedAnswer:
    """An answer that was authenticated."""

    answer: VendorAnswer
    life: Life
