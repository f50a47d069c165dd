"""What the guest's shim lets through to the workload, and for what it wants a key.

The shim is the guest's HTTPS front. It answers 404 by itself for a path that its config does not
list, 401 for one that it guards, and its own documents under `/.well-known/`. The rules are those
of the public image's shim from 0.11 on: a list that is absent or empty lets everything through; a
pattern that ends in `*` covers whole segments, every other one exactly itself; guarding is off
unless `authenticated` is true.
"""

from __future__ import annotations

import msgspec

_DOCUMENTS = ("attestation", "boot-stages", "certificate", "containers", "metrics")
_OWN = frozenset(
    {
        "/.well-known/metrics",
        "/.well-known/hpke-keys",
        *(f"/.well-known/tinfoil-{name}" for name in _DOCUMENTS),
    }
)


class ShimRules(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Patterns of paths.

    `paths`: those that are let through; all if it is empty. `guarded`: those that want a key.
    `guards_all`: every path wants one, as with a rate limit, which is counted by key.
    """

    paths: tuple[str, ...] = ()
    guarded: tuple[str, ...] = ()
    guards_all: bool = False

    def lets_through(self, path: str) -> bool:
        """Whether a request for this path reaches the workload, given a key where one is due."""
        if path in _OWN:
            return False
        return not self.paths or any(covers(pattern, path) for pattern in self.paths)

    def guards(self, path: str) -> bool:
        """Whether it wants a key for this path."""
        return self.guards_all or any(covers(pattern, path) for pattern in self.guarded)


def covers(pattern: str, path: str) -> bool:
    """Whether one pattern of the shim stands for this path."""
    if not pattern.endswith("*"):
        return pattern == path
    prefix = pattern[:-1]
    if prefix.endswith("/"):
        return path.startswith(prefix)
    return path == prefix or path.startswith(f"{prefix}/")
