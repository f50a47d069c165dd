"""The names of links of the agent's that others must tell apart from the host's own. Pure."""

from __future__ import annotations

import hashlib

_OUTSIDE = "enc-out-"


def outside_link(bridge: str) -> str:
    """The host's end of the way by which the agent asks listeners as a client would.

    By the guests' bridge, which no two agents of a host share.
    """
    return _OUTSIDE + hashlib.sha256(bridge.encode()).hexdigest()[:6]


def is_outside_link(name: str) -> bool:
    """Whether it is that of an agent: no client comes by it."""
    return name.startswith(_OUTSIDE)
