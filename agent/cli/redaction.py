"""What leaves the host in a support bundle: nothing that may be somebody's secret. Pure.

Values of variables go, all of them; so does what looks like a credential wherever it stands, and
what a guest printed, unless it was asked for. Names, addresses and numbers stay: without them
nobody could help.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MASK = "(redacted)"

# The published beginnings of tokens, a URL's user part, and private keys, each in any text.
_IN_TEXT = re.compile(
    r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|hf_|sk-|[rs]k_(?:live|test)_|A[KS]IA|AIza)"
    r"[A-Za-z0-9_-]{8,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)?"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|(?<=://)[^/@\s:]*:[^/@\s]+(?=@)"
    r"|(?i:\b(?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}",
    re.DOTALL,
)
_NAMED = re.compile(
    r"(?i)([\w.-]*(?:password|passwd|passphrase|secret|token|api_?key|private_?key|credential)"
    r"[\w.-]*\"?\s*[=:]\s*\"?)([^\s\",;}]{4,})"
)
_OF_GUESTS = frozenset({"console_tail", "evidence", "guest_metrics"})


def redacted_text(text: str) -> str:
    """The text, with what looks like a credential masked."""
    return _NAMED.sub(_masked_value, _IN_TEXT.sub(MASK, text))


def _masked_value(found: re.Match[str]) -> str:
    value = found[2]
    plain = value.startswith(("/", "(redacted)", "null", "true", "false")) or value.isdigit()
    return found[0] if plain else f"{found[1]}{MASK}"


def redacted(value: Any) -> Any:
    """The same of a JSON value: variables keep their names, what a guest said goes."""
    match value:
        case str():
            return redacted_text(value)
        case list():
            return [redacted(one) for one in value]
        case dict():
            return {name: _member(name, one) for name, one in value.items()}
    return value


def _member(name: str, value: Any) -> Any:
    if name == "variables" and isinstance(value, Mapping):
        return dict.fromkeys(value, MASK)
    if name in _OF_GUESTS and value is not None:
        return MASK
    return redacted(value)
