"""How long to leave a vendor alone after it refused. Pure.

Backoff with full jitter: any wait up to a bound that doubles, so that hosts which failed together
do not come back together. What the vendor itself asked for goes before that.
"""

from __future__ import annotations

import datetime as dt
from email.utils import parsedate_to_datetime

FIRST_S = 10.0  # AMD's service answers one request in so many seconds, an address
LONGEST_S = 900.0
_LONGEST_ASKED_S = 6 * 3600.0
_MAX_DOUBLINGS = 16


def backoff_s(failures: int, chance: float) -> float:
    """The wait after so many failures in a row (from 1); `chance` in [0, 1)."""
    bound = FIRST_S * 2.0 ** min(failures - 1, _MAX_DOUBLINGS)
    return chance * min(LONGEST_S, bound)


def asked_s(retry_after: str | None, now: dt.datetime) -> float | None:
    """The wait that a Retry-After asks for (RFC 9110, 10.2.3: seconds or a date); None: none.

    At most six hours are believed.
    """
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return min(float(text), _LONGEST_ASKED_S)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        return None
    return min(max((moment - now).total_seconds(), 0.0), _LONGEST_ASKED_S)
