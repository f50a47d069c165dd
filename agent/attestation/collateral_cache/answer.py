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
class Edition:
    """Which issue of something that is issued again and again. Only those of one `series` can be
    compared: of a revocation list there is one, of TCB info one an evaluation number.
    """

    series: int
    number: int
    issued: dt.datetime

    def is_before(self, other: Edition) -> bool:
        """Whether it is an older issue of the same."""
        mine, theirs = (self.number, self.issued), (other.number, other.issued)
        return self.series == other.series and mine < theirs


@dataclass(frozen=True, slots=True)
class Life:
    """Until when an answer counts, and from when on a newer one is to be had (None: never).

    Of a revocation list the end may be over: that it was there is not forgotten.
    """

    ends_at: dt.datetime
    refresh_at: dt.datetime | None
    edition: Edition | None = None


@dataclass(frozen=True, slots=True)
class AuthenticatedAnswer:
    """An answer that was authenticated."""

    answer: VendorAnswer
    life: Life
