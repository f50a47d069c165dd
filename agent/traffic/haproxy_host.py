"""What this host has for HAProxy: its binary, limits, a user for root's process to become."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import resource
import shutil
from pathlib import Path

from agent.config_limits import LimitsConfig
from agent.errors import describe
from agent.host.commands import CommandError, RunCommand, run_command
from agent.traffic.haproxy_config import HaproxyFiles
from agent.traffic.limits import limits_within
from agent.traffic.port import TrafficError

_OLDEST = (2, 6)
_USERS = ("haproxy", "nobody")
_SAFE_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_MAX_PATH_BYTES = 80  # of a unix socket's 107, less the name and what HAProxy appends meanwhile
_MAX_CONNECTIONS = 40_000


def find_binary() -> str | None:
    """HAProxy's path; it is looked for where users' own paths do not lead, too."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    return shutil.which("haproxy", path=path)


async def probe_haproxy(run: RunCommand = run_command) -> str | None:
    """Why this host cannot have the HAProxy data plane, or None."""
    binary = find_binary()
    if binary is None:
        return "there is no haproxy on this host; install Debian's package haproxy"
    try:
        told = await run([binary, "-v"])
    except CommandError as error:
        return describe(error)
    found = re.search(rb"version (\d+)\.(\d+)", told.stdout)
    if found is None:
        return f"{binary} does not tell its version"
    if (int(found[1]), int(found[2])) < _OLDEST:
        return f"{binary} is older than {_OLDEST[0]}.{_OLDEST[1]}"
    return None


def check_directory(directory: Path) -> None:
    """Raises TrafficError for one that cannot be written into a configuration."""
    path = str(directory)
    if not _SAFE_PATH.fullmatch(path) or len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise TrafficError(
            f"{path} cannot be in HAProxy's configuration: it must be of letters, digits, "
            f"'/', '.', '_' and '-', and have {_MAX_PATH_BYTES} bytes at most"
        )


def place_in(directory: Path, limits: LimitsConfig) -> HaproxyFiles:
    """Root's process gives its rights up; another's has none to give up."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MAX_CONNECTIONS
    if hard != resource.RLIM_INFINITY:
        most = max(1, min(most, (hard - 100) // 2))
    user = _unprivileged_user() if os.geteuid() == 0 else None
    return HaproxyFiles(
        directory=directory,
        limits=limits_within(limits, most),
        max_connections=most,
        user=user,
    )


def _unprivileged_user() -> str | None:
    for name in _USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return None
