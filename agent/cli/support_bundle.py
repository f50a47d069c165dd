"""`enclave-agent support-bundle`: what somebody needs who is to help, in one file, redacted.

Each part stands for itself: one that cannot be had is replaced by the reason, so that a bundle is
made while the agent is down, too.
"""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.exits import Exit, Failure
from agent.cli.options import Output, result
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.cli.client import Client

_EVENTS = 2000
_LINES = 5000
_TIMEOUT_S = 30
_COMMANDS: dict[str, tuple[str, ...]] = {
    "host/uname.txt": ("uname", "-a"),
    "host/os-release.txt": ("cat", "/etc/os-release"),
    "host/memory.txt": ("cat", "/proc/meminfo"),
    "host/processors.txt": ("lscpu",),
    "host/pci.txt": ("lspci", "-nnk"),
    "host/links.txt": ("ip", "-details", "address"),
    "host/routes.txt": ("ip", "route", "show", "table", "all"),
    "host/ruleset.txt": ("nft", "list", "ruleset"),
    "host/qemu.txt": ("qemu-system-x86_64", "--version"),
    "host/unit.txt": ("systemctl", "status", "--no-pager", "enclave-agent"),
    "journal.txt": (
        *("journalctl", "--no-pager", "--output=short-iso", f"--lines={_LINES}"),
        "--unit=enclave-agent",
    ),
}


@click.command(name="support-bundle")
@click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Where to; nothing is overwritten. [enclave-agent-support-TIME.tar.gz]",
)
@click.option("--consoles", is_flag=True, help="With what guests printed, redacted like the rest.")
@result
def support_bundle(path: Path | None, output: Output, *, consoles: bool) -> None:
    """Put what somebody needs who is to help into one file, redacted.

    Variables' values and what looks like a credential are left out; no secret is in reach of it.
    """
    from agent.cli.screen import tell
    from agent.cli.text import now

    stamp = now().strftime("%Y%m%dT%H%M%SZ")
    name = f"enclave-agent-support-{stamp}"
    path = path or Path(f"{name}.tar.gz")
    parts = dict(_parts(session().client(), consoles=consoles))
    size = _write(path, name, parts)
    lacking = sorted(part for part, (_, lacks) in parts.items() if lacks)
    told = f"{path}: {len(parts)} parts, {size // 1024 + 1} KiB, redacted"
    missing = f"not to be had: {', '.join(lacking)}"
    answer = {"file": str(path), "bytes": size, "parts": sorted(parts), "lacking": lacking}
    tell(answer, output, told, *([missing] if lacking else []))


Part = tuple[bytes, bool]  # its text, and whether that is only why it is not to be had


def _parts(client: Client, *, consoles: bool) -> Iterator[tuple[str, Part]]:
    """All of it: name → part."""
    for name, path in (
        ("status.json", "/status"),
        ("inventory.json", "/v1/inventory"),
        ("capacity.json", "/v1/capacity"),
        ("images.json", "/v1/images"),
        ("deployments.json", "/v1/deployments"),
    ):
        yield name, _part(lambda path=path: client.read(path, Any))  # type: ignore[misc]
    yield "events.json", _part(lambda: _events(client))
    for name in _names(client):
        path = f"/v1/deployments/{name}"
        yield f"updates/{name}.json", _part(lambda p=path: client.read(f"{p}/updates", Any))  # type: ignore[misc]
        yield f"secrets/{name}.json", _part(lambda p=path: client.read(f"{p}/secrets", Any))  # type: ignore[misc]
        if consoles:
            yield from _consoles(client, name)
    yield "doctor.json", _part(_doctor)
    yield "config.yaml", _part(_config)
    for name, argv in _COMMANDS.items():
        yield name, _part(lambda argv=argv: _said(argv))  # type: ignore[misc]


def _part(read: Callable[[], Any]) -> Part:
    """Redacted, as JSON or text; a failure as its reason."""
    import msgspec

    from agent.cli.redaction import redacted, redacted_text

    try:
        value = read()
    except Failure as failure:
        return "\n".join([failure.message, *failure.lines]).encode() + b"\n", True
    except (OSError, subprocess.SubprocessError) as error:
        return f"{error}\n".encode(), True
    if isinstance(value, str):
        return redacted_text(value).encode("utf-8", "replace"), False
    return msgspec.json.format(msgspec.json.encode(redacted(value)), indent=1), False


def _names(client: Client) -> list[str]:
    from agent.cli.names import deployment_names

    try:
        return deployment_names(client)
    except Failure:
        return []


def _events(client: Client) -> Any:
    """The newest."""
    from collections import deque

    from agent.cli.events import kept

    return {"events": list(deque(kept(client, 0), maxlen=_EVENTS))}


def _consoles(client: Client, name: str) -> Iterator[tuple[str, Part]]:
    from agent.wire.answers import EndedConsoles
    from agent.wire.views import DeploymentView

    try:
        running = client.read(f"/v1/deployments/{name}", DeploymentView).enclaves
        ended = client.read(f"/v1/consoles?deployment={name}", EndedConsoles).consoles
    except Failure:
        return
    for enclave in [*(one.id for one in running), *(one.enclave for one in ended)]:
        path = f"/v1/enclaves/{enclave}/console?tail=1048576"
        read = lambda path=path: client.read_bytes(path).decode()  # noqa: E731
        yield f"consoles/{name}-{enclave}.txt", _part(read)


def _doctor() -> Any:
    import sys

    import msgspec

    done = subprocess.run(
        [sys.executable, "-m", "agent", "doctor", "-o", "json"],
        capture_output=True,
        timeout=120,
        check=False,
    )
    try:
        return msgspec.json.decode(done.stdout)
    except msgspec.DecodeError:
        return done.stderr.decode("utf-8", "replace")


def _config() -> str:
    path = session().config_path
    return "there is none: every setting is its default\n" if path is None else path.read_text()


def _said(argv: tuple[str, ...]) -> str:
    done = subprocess.run(argv, capture_output=True, timeout=_TIMEOUT_S, check=False)
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def _write(path: Path, name: str, parts: dict[str, Part]) -> int:
    """One file, for its owner alone; complete or not there. Raises Failure."""
    from agent.cli.text import now

    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise Failure(Exit.USAGE, f"{path}: is there already", ["another: --file PATH"]) from None
    except OSError as error:
        raise Failure(Exit.FAILED, f"{path}: {error.strerror}") from None
    try:
        with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as bundle:
            for part, (data, _) in parts.items():
                member = tarfile.TarInfo(f"{name}/{part}")
                member.size, member.mode, member.mtime = len(data), 0o600, int(now().timestamp())
                bundle.addfile(member, io.BytesIO(data))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Failure(Exit.FAILED, f"{path}: {error.strerror}") from None
    return path.stat().st_size
