"""The doctor's lines about where the agent writes, listens and reads releases.

Each is judged as whoever runs this: what the agent may do the agent is asked (`doctor` asks it).
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config

_TIMEOUT_S = 5.0
_LEAST_FREE_MIB = 64
_AGENT = "enclave-agent"


def state_dir_line(config: Config) -> Line:
    """Whether the store, images and consoles have a place that takes them."""
    return _writable("state_dir", config.state_dir)


def run_dir_line(config: Config) -> Line:
    """Whether there is a place for sockets, and that it is gone with a reboot."""
    line = _writable("run_dir", config.run_dir)
    if line.state != "ok":
        return line
    from agent.host.files import in_memory

    if in_memory(_nearest(config.run_dir)):
        return line
    from agent.host.secrets_place import secrets_place

    place = secrets_place(config.run_dir, config.state_dir)
    mend = "set run_dir to a directory on tmpfs, such as /run/enclave-agent"
    if place is None:
        told = f"{config.run_dir} is on a disk, and so is /dev/shm: secrets may touch none"
        return Line("run_dir", "error", told, mend)
    return Line("run_dir", "warn", f"{config.run_dir} is on a disk: secrets go to {place}", mend)


def ports_line(config: Config) -> Line:
    """Whether nobody else has the ports that the agent listens on itself."""
    from agent.host.listener_owners import listener_at
    from agent.model.resources import Listen

    wanted = {"listen.status": config.listen.status, "listen.rpc": config.listen.rpc}
    taken = []
    for name, text in wanted.items():
        if not text:
            continue
        whose = listener_at(Listen.parse(text))
        if whose and not (_AGENT in whose or f"(process {os.getppid()})" in whose):
            taken.append(f"{text} ({name}) is taken by {whose}")
    if taken:
        return Line("ports", "error", "; ".join(taken), "free it, or listen on another")
    listed = ", ".join(text for text in wanted.values() if text)
    return Line("ports", "ok", f"nobody else has {listed}" if listed else "none is listened on")


def source_line(config: Config) -> Line:
    """Whether releases can be had, and where images may come from besides."""
    source, elsewhere = config.releases.source, config.releases.image_sources
    if source is None:
        return Line("releases", "warn", "no source is configured", "set releases.source")
    for one in elsewhere:
        if not one.startswith("https://") and not Path(one.removeprefix("file://")).is_dir():
            mend = "set releases.image_sources"
            return Line("releases", "error", f"{one} is no directory", mend)
    fault = _source_fault(source)
    if fault is not None:
        return Line("releases", "error", *fault)
    images = ", ".join(elsewhere) or "nowhere else"
    return Line("releases", "ok", f"{source} can be read; images also from {images}")


def _source_fault(source: str) -> tuple[str, str] | None:
    """What is wrong with it, and the remedy."""
    from agent.releases.github import github_host

    host = github_host(source)
    if host is not None or source.startswith("https://"):
        if (problem := _unreachable(f"https://{host}" if host else source)) is not None:
            mend = "look at the network and the name's resolution, or set releases.source"
            return f"{source} cannot be reached: {problem}", mend
        return None
    path = Path(source.removeprefix("file://"))
    if not path.is_dir():
        return f"{source} is no directory", "set releases.source"
    if not os.access(path, os.R_OK | os.X_OK):
        return f"{source} may not be read", "let the agent's user read it"
    return None


def _unreachable(url: str) -> str | None:
    """Why no TLS connection to it comes about; None: one does."""
    import ssl

    parts = urlsplit(url)
    try:
        address = (parts.hostname or "", parts.port or 443)
        with (
            socket.create_connection(address, _TIMEOUT_S) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname),
        ):
            return None
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


def _nearest(path: Path) -> Path:
    """The directory, or the nearest above it that is there."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _writable(what: str, path: Path) -> Line:
    nearest = _nearest(path)
    mend = f"let the agent's user write there, or set {what}"
    if not nearest.is_dir():
        return Line(what, "error", f"{path}: {nearest} is no directory", mend)
    if not os.access(nearest, os.W_OK | os.X_OK):
        return Line(what, "error", f"{nearest} may not be written by user {os.geteuid()}", mend)
    free_mib = os.statvfs(nearest).f_bavail * os.statvfs(nearest).f_frsize >> 20
    if free_mib < _LEAST_FREE_MIB:
        return Line(what, "error", f"{nearest} has {free_mib} MiB left", "make room there")
    made = "" if path.exists() else ", and is made there"
    return Line(what, "ok", f"{path}{made}: {free_mib} MiB free")
