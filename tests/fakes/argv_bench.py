"""A command line against a real QEMU's parser: its files, its stand-ins, and how it is asked."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient

from agent.enclaves.argv import build_argv, console_ring
from agent.enclaves.argv_tee import TCG_CPU
from agent.enclaves.spec import FileSource, InheritedFile, PathFile, VmSpec

QEMU = "qemu-system-x86_64"
CACHE = Path(__file__).parents[2] / ".cache" / "qemu"


def cached_qemu(tee: str) -> str | None:
    """The QEMU that `scripts/fetch-qemu` fetched for a TEE; None if it is not there."""
    try:
        known = json.loads((CACHE / "qemu.json").read_text())
        return str(CACHE / known[tee]["binary"])
    except (OSError, ValueError, KeyError):
        return None


def a_kernel() -> bytes:
    """The least that QEMU's loader takes for a Linux kernel (boot protocol 2.06)."""
    image = bytearray(8192)
    image[0x1F1] = 4
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x208] = b"HdrS\x06\x02"
    image[0x211] = 1
    image[0x22C:0x230] = b"\xff\xff\xff\x7f"
    return bytes(image)


class Bench:
    """Files of a VM in a directory, and the descriptors under which QEMU inherits them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        self.fds: list[int] = []

    def within(self, name: str) -> Bench:
        """Another one: a lock that QEMU took lasts as long as our descriptor of the file."""
        directory = self.directory / name
        directory.mkdir()
        return Bench(directory, self._stack)

    def make(self, name: str) -> Path:
        path = self.directory / name
        size = 64 << 10 if name == "firmware" else 8192
        path.write_bytes(a_kernel() if name.startswith("kernel") else bytes(size))
        return path

    def inherited(self, name: str, writable: bool) -> FileSource:
        fd = os.open(self.make(name), os.O_RDWR if writable else os.O_RDONLY)
        self._stack.callback(os.close, fd)
        self.fds.append(fd)
        return InheritedFile(fd)

    def by_path(self, name: str, writable: bool) -> FileSource:
        return PathFile(self.make(name))

    def mixed(self, name: str, writable: bool) -> FileSource:
        by_path = name.startswith(("model", "volume"))
        return (self.by_path if by_path else self.inherited)(name, writable)


def on_tcg(spec: VmSpec) -> list[str]:
    """The command line, on TCG, stopped, with a stand-in for each passed-through device."""
    argv = build_argv(QEMU, spec)
    argv[argv.index("-accel") + 1] = "tcg"
    argv[argv.index("-cpu") + 1] = TCG_CPU
    return ["-S", *(stand_in(word) for word in argv[1:])]


def stand_in(word: str) -> str:
    if not word.startswith('{"driver":"vfio-pci"'):
        return word
    device = json.loads(word)
    return json.dumps({"driver": "pci-testdev", "id": device["id"], "bus": device["bus"]})


@contextmanager
def started(
    words: list[str], fds: list[int], binary: str = QEMU
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [binary, *words], pass_fds=fds, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


async def until_listening(process: subprocess.Popen[bytes], qmp_socket: Path) -> None:
    """A socket that is bound is not listening yet; QMP answers when all options were taken."""
    while True:
        assert process.poll() is None, process.communicate()[1].decode()
        try:
            reader, writer = await asyncio.open_unix_connection(qmp_socket)
        except (FileNotFoundError, ConnectionRefusedError):
            await asyncio.sleep(0.005)
            continue
        greeting = await reader.readline()
        writer.close()
        if greeting:
            return


async def look(words: list[str], fds: list[int], qmp_socket: Path, binary: str = QEMU) -> Any:
    """Start, connect as soon as the socket is there, return what QMP shows, quit cleanly.

    QEMU takes its sockets away when it quits: which ones there were is seen before that.
    """
    with started(words, fds, binary) as process:
        await until_listening(process, qmp_socket)
        client = QMPClient("argv")
        ring = console_ring(debug_console=any(word.endswith(",mux=on") for word in words))
        await client.connect(str(qmp_socket))
        try:
            return {
                "status": await client.execute("query-status"),
                "name": await client.execute("query-name"),
                "uuid": await client.execute("query-uuid"),
                "pci": await client.execute("query-pci"),
                "nodes": await client.execute("query-named-block-nodes", {"flat": True}),
                "console": await client.execute("ringbuf-read", {"device": ring, "size": 64}),
                "append": await machine(client, "append"),
                "kernel": await machine(client, "kernel"),
                "firmware": await machine(client, "firmware"),
                "serials": await properties(client, "virtio-blk-pci", "virtio-backend/serial"),
                "behind": await properties(client, "pci-testdev", "parent_bus"),
                "sockets": {path for path in qmp_socket.parent.iterdir() if path.is_socket()},
            }
        finally:
            await client.execute("quit")
            with suppress(EOFError):  # QEMU may have hung up already
                await client.disconnect()


async def machine(client: QMPClient, name: str) -> object:
    return await client.execute("qom-get", {"path": "/machine", "property": name})


async def properties(client: QMPClient, kind: str, path: str) -> dict[str, str]:
    """A property (PATH/NAME) of every device of a kind, by the device's id."""
    listed: Any = await client.execute("qom-list", {"path": "/machine/peripheral"})
    found = {}
    for device in (c["name"] for c in listed if c["type"] == f"child<{kind}>"):
        at, _, name = f"/machine/peripheral/{device}/{path}".rpartition("/")
        found[device] = str(await client.execute("qom-get", {"path": at, "property": name}))
    return found


def addresses(pci: Any) -> dict[str, str]:
    return {
        d["qdev_id"]: f"{d['slot']:02x}.{d['function']}" for d in pci[0]["devices"] if d["qdev_id"]
    }


def key_paths(value: object, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The way to every key of an option in JSON."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from key_paths(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value[:1]):
            yield from key_paths(inner, (*at, number))


def misspelt(value: dict[str, Any], path: tuple[str | int, ...]) -> str:
    """The option with that key by another name."""
    changed = json.loads(json.dumps(value))
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[f"{path[-1]}x"] = inner.pop(path[-1])
    return json.dumps(changed)
