"""Text from elsewhere, made fit for a terminal; numbers and times made fit for a person.

Guests, releases and peers choose some of the strings that we print. Control characters in them are
shown as escapes, so that they can neither move the cursor nor forge a line.
"""

from __future__ import annotations

import datetime as dt


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
