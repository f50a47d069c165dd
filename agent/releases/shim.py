"""`shim` of `tinfoil-config.yml`: what the guest lets through to the workload."""

from __future__ import annotations

from agent.model.shim import ShimRules
from agent.releases.fields import Field

_MAX_PATTERNS = 1024
_GUARDED_BY_DEFAULT = ("/v1/chat/completions",)


def read_shim(root: Field) -> ShimRules:
    """Of a whole config. Raises ReleaseFieldError."""
    shim = root.optional("shim")
    if shim is None:
        return ShimRules()
    return ShimRules(
        paths=_patterns(shim.optional("paths")),
        guarded=_guarded(shim),
        guards_all=_rate_limited(shim),
    )


def _guarded(shim: Field) -> tuple[str, ...]:
    """Absent endpoints mean the one of the public shim; an empty list means none.

    Nothing is guarded where there is no control plane to ask about a key. What `authenticated`
    may be is the guest's to say: here all but its absence and `false` means that there are keys.
    """
    authenticated, asked = shim.optional("authenticated"), shim.optional("control-plane")
    if authenticated is None or authenticated.value is False or (asked and asked.value == ""):
        return ()
    endpoints = shim.optional("authenticated-endpoints")
    return _GUARDED_BY_DEFAULT if endpoints is None else _patterns(endpoints)


def _rate_limited(shim: Field) -> bool:
    limit = shim.optional("rate-limit")
    return limit is not None and isinstance(limit.value, int | float) and limit.value > 0


def _patterns(field: Field | None) -> tuple[str, ...]:
    return tuple(one.text() for one in field.items(_MAX_PATTERNS)) if field else ()
