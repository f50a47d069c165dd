"""A guest whose HTTPS front is a shim with the manners of the public image's.

They were read in that image's own source, version 0.11.0: what it answers before the workload is
up (503 with a status), for a path that its config does not list (404), for one that wants a key
(401), and where the workload's port is dead (502); everything else is the workload's answer. The
documents under `/.well-known/` are its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from agent.model.shim import ShimRules
from agent.releases.workload import parse_workload
from tests.fakes.tls_guest import BOOT, CONTAINERS, METRICS, Script, TlsGuest, reply, says

Workload = Callable[[str, str], bytes]
_OWN = frozenset({BOOT, CONTAINERS, METRICS})


def error(code: int, message: str, kind: str, **more: str) -> bytes:
    """One of the shim's own errors."""
    return says({"error": {"message": message, "type": kind, **more}}, code)


NOT_LISTED = error(404, "Not found.", "invalid_request_error")
NO_KEY = error(401, "API key is required.", "invalid_request_error")
NOBODY_THERE = error(502, "The server had an error while processing your request.", "server_error")


def not_up(status: str) -> bytes:
    """While the workload is not served: `pending`, or `failed` once a stage of the boot has.

    Every stage is in it, before the error: the shim writes members in the order of their names.
    """
    stages = [{"name": f"stage-{n}", "status": "ok", "detail": "x" * 400} for n in range(12)]
    told = {"message": "Workload proxy is not ready.", "type": "server_error", "status": status}
    return says({"boot": {"stages": stages}, "error": told}, 503)


def says_yes(_path: str, _host: str) -> bytes:
    """A workload that is well on every path."""
    return reply(200, b"hello")


class ShimGuest(TlsGuest):
    """`listed` and `keyed` are patterns of `shim.paths` and of what wants a key.

    `workload` None: nothing listens on its port. `before`: what is said while it is not up.
    """

    def __init__(self, listed: list[str] | None = None, keyed: list[str] | None = None) -> None:
        super().__init__()
        self.listed, self.keyed = listed or [], keyed or []
        self.workload: Workload | None = says_yes
        self.before: bytes | None = None

    def answer(self, path: str, host: str) -> bytes | Script:
        bare = path.partition("?")[0]
        if bare in _OWN:
            return self.answers[bare]
        if self.before is not None:
            return self.before
        if self.listed and not any(_matches(one, bare) for one in self.listed):
            return NOT_LISTED
        if any(_matches(one, bare) for one in self.keyed):
            return NO_KEY
        return self.workload(path, host) if self.workload else NOBODY_THERE


def shim_of(**members: Any) -> ShimRules:
    """The rules that the agent reads from a config whose `shim` has these members."""
    shim = {"upstream-port": 8080, **{key.replace("_", "-"): v for key, v in members.items()}}
    config = {"cvm-version": "0.11.0", "cpus": 1, "memory": 256, "shim": shim}
    return parse_workload(yaml.safe_dump(config).encode()).shim


def _matches(pattern: str, path: str) -> bool:
    """Written independently of the agent's own reading, by segments."""
    if not pattern.endswith("*"):
        return path == pattern
    if pattern.endswith("/*"):
        return path.startswith(pattern[:-1])
    wanted = pattern[:-1].split("/")
    return path.split("/")[: len(wanted)] == wanted
