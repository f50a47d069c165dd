"""Text from elsewhere, made fit for a terminal; numbers and times made fit for a person.

Guests, releases and peers choose some of the strings that we print. Control characters in them are
shown as escapes, so that they can neither move the cursor nor forge a line.
"""

from __future__ import annotations

import datetime as dt

_UNITS = (("d", 86400), ("h", 3600), ("min", 60))


def safe(text: str) -> str:
    """One line: every control character as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def safe_lines(text: str) -> str:
    """Several lines: line ends and tabs stay, other control characters become escapes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else _escape(c) for c in text.replace("\r\n", "\n")
    )


def escaped_json(text: str) -> str:
    """The same JSON, with every character that is not printed as an escape of JSON's own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    code = ord(character)
    if code > 0xFFFF:
        high, low = divmod(code - 0x10000, 0x400)
        return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
    return f"\\u{code:04x}"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def duration(seconds: float) -> str:
    """As a person says it: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, smaller, big, small in (
        (86400, 3600, "d", "h"),
        (3600, 60, "h", "min"),
        (60, 1, "min", "s"),
    ):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {big} {rest} {small}" if rest else f"{whole // unit} {big}"
    return f"{whole} s"


def moment(at: dt.datetime) -> str:
    """UTC to the second."""
    return at.astimezone(dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def now() -> dt.datetime:
    """The moment that relative times are told from."""
    return dt.datetime.now(dt.UTC)


def ago(at: dt.datetime) -> str:
    """How long it is since then, in one unit: `42 s ago`, `3 min ago`, `in 2 h`."""
    since_s = round((now() - at).total_seconds())
    unit, size = next(((u, n) for u, n in _UNITS if abs(since_s) >= n), ("s", 1))
    count = f"{abs(since_s) // size} {unit}"
    return f"{count} ago" if since_s >= 0 else f"in {count}"


def moment_ago(at: dt.datetime) -> str:
    """The one way in which a moment is told: `2026-01-01 00:00:00Z (3 min ago)`."""
    return f"{moment(at)} ({ago(at)})"


def told_moment(text: str) -> str:
    """The same of a moment in RFC 3339; what is none is shown as it is."""
    try:
        return moment_ago(dt.datetime.fromisoformat(text))
    except (ValueError, TypeError):
        return safe(text)
