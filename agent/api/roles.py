"""Who may do what: a listener has a role, a route needs a permission.

A listener's role is fixed when it is bound (or, over TLS, read from the peer's certificate); it is
never taken from anything that a request says.
"""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """Who is at the other end."""

    LOCAL = "local"
    STATUS = "status"
    OBSERVER = "observer"
    COORDINATOR = "coordinator"


class Permission(StrEnum):
    """What a route needs."""

    STATUS = "status"  # health, status, metrics, the description of the API
    READ = "read"
    CHANGE = "change"
    DEBUG = "debug"  # host-local: what a guest printed
    HOST = "host"  # host-local: what only somebody on the host may change


_GRANTS: dict[Role, frozenset[Permission]] = {
    Role.LOCAL: frozenset(Permission),
    Role.STATUS: frozenset({Permission.STATUS}),
    Role.OBSERVER: frozenset({Permission.STATUS, Permission.READ}),
    Role.COORDINATOR: frozenset({Permission.STATUS, Permission.READ, Permission.CHANGE}),
}


def may(role: Role, permission: Permission) -> bool:
    """Whether that role has that permission."""
    return permission in _GRANTS[role]
