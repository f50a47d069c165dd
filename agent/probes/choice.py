"""Which path of the workload tells whether it lives. Pure.

In this order: the one that the deployment names; `/health` if the shim lets it through; a listed
literal path that ends in `health`; the first listed literal path; `/` if a wildcard covers it. But
for the first, none that the shim guards: without a key its answer there is the shim's own. Without
any, containers and published ports decide, which `unasked` tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.model.reasons import AskedProbes
from agent.model.revision import Revision
from agent.model.shim import ShimRules, covers
from agent.wire.text import PROBE_PATH_PATTERN

_HEALTH = "/health"
_LITERAL = re.compile(PROBE_PATH_PATTERN)


def choose_path(shim: ShimRules, named: str | None) -> str | None:
    """The path to be asked for; with its query, if the deployment names one that has one."""
    if named is not None:
        return named
    return next((path for path in _candidates(shim) if _is_open(shim, path)), None)


def must_say_yes(path: str, *, named: bool) -> bool:
    """Whether the path is there to tell about health, so that only 2xx and 3xx are good.

    At every other one, asked because nothing better is known, any answer of the workload itself
    shows that it lives: an API may well answer 404 or 405 there.
    """
    return named or path.endswith("health")


def asked_probes(revision: Revision) -> AskedProbes:
    """What is asked of this revision's workload, and which answers are good."""
    return AskedProbes(
        path=revision.probes.path,
        host=revision.probes.host,
        asked_path=revision.health_path,
        asked_host=revision.probe_host,
        healthy_when=_good_answers(revision),
    )


def _good_answers(revision: Revision) -> str:
    path = revision.health_path
    if path is None:
        return _what_decides(revision)
    yes = must_say_yes(path, named=revision.probes.path is not None)
    good = "2xx or 3xx" if yes else "any answer of the workload below 500"
    guarded = "; 401 and 403 are the shim's and tell nothing" if revision.health_guarded else ""
    return f"{good}{guarded}"


def unasked(revision: Revision) -> str | None:
    """Why the workload's own answers do not count for this revision; None: they do."""
    decide = _what_decides(revision)
    if revision.health_path is None:
        why = "shim.paths has no path that the workload answers without a key"
    elif revision.health_guarded:
        why = f"the guest's shim wants a key for {revision.health_path}"
    else:
        return None
    return f"{why}: {decide}; name an open path with probes.path (--probe-path)"


def _candidates(shim: ShimRules) -> Iterator[str]:
    yield _HEALTH
    literal = [path for path in shim.paths if "?" not in path and _LITERAL.fullmatch(path)]
    yield from (path for path in literal if path.endswith("health"))
    yield from literal
    wildcards = [pattern for pattern in shim.paths if pattern.endswith("*")]
    if not shim.paths or any(covers(pattern, "/") for pattern in wildcards):
        yield "/"


def _is_open(shim: ShimRules, path: str) -> bool:
    return shim.lets_through(path) and not shim.guards(path)


def _what_decides(revision: Revision) -> str:
    """In words: what is left to tell whether it is Ready."""
    ports = ", ".join(map(str, revision.published_ports))
    left = [
        "its containers" if revision.container_names else "",
        f"its published ports ({ports})" if ports else "",
    ]
    said = " and ".join(filter(None, left))
    return f"{said} decide whether it is Ready" if said else "nothing but its boot decides"
