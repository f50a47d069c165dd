"""Variables that look like credentials: shown, if at all, without their value. Pure.

A variable is no place for a secret: it is in the release's external config and in every answer.
Who put one there all the same shall not find it in a terminal's history and in screenshots. It is
told by the words of its name, by a URL's user part, and by the published beginnings of tokens
(GitHub, GitLab, Slack, AWS, Hugging Face, Stripe, Google, JSON Web Tokens, PEM).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MASK = "********"
_WORDS = frozenset(
    (
        *("APIKEY", "AUTH", "AUTHORIZATION", "BEARER", "COOKIE", "CREDENTIAL", "CREDENTIALS"),
        *("CREDS", "JWT", "KEY", "KEYS", "PASS", "PASSPHRASE", "PASSWD", "PASSWORD", "PAT"),
        *("PRIVATE", "PWD", "SECRET", "SECRETS", "SIGNATURE", "TOKEN", "TOKENS"),
    )
)
_PUBLIC = frozenset(("PUBLIC", "PUB"))  # a public key is none
_SPLIT = re.compile(r"[^A-Za-z0-9]+|(?<=[a-z0-9])(?=[A-Z])")
_JOINED = re.compile(
    r"(APIKEY|PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|CREDENTIAL|PRIVATEKEY)S?$", re.IGNORECASE
)
# No pattern begins with a run of any length: each place of the run would read all the rest of it,
# and a value of 64 KiB would hold the event loop for minutes.
_USER_PART = re.compile(r"[a-z0-9+.-]://[^/@\s:]*:[^/@\s]+@", re.IGNORECASE)
_TOKEN = re.compile(
    r"\b(gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|A[KS]IA[0-9A-Z]{12}|hf_[A-Za-z0-9]{20}|sk-[A-Za-z0-9_-]{16}"
    r"|[rs]k_(live|test)_|AIza[0-9A-Za-z_-]{30})"
    r"|[A-Za-z0-9_-]{11}\.eyJ|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bBearer\s+\S{8}"
)


def looks_like_a_credential(name: str, value: str) -> bool:
    """Whether its value is not for everybody's eyes. An empty one, a number or a path is."""
    if _USER_PART.search(value) or _TOKEN.search(value):
        return True
    if not value or value.isdigit() or value.startswith(("/", "./")) or value in ("true", "false"):
        return False
    words = {word.upper() for word in _SPLIT.split(name)}
    if words & _PUBLIC:
        return False
    return bool(words & _WORDS) or _JOINED.search(name) is not None


def masked(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables as they are shown."""
    return {
        name: MASK if looks_like_a_credential(name, value) else value
        for name, value in variables.items()
    }
