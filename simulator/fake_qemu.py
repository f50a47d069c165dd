"""Stands in for QEMU as an executable: takes its arguments, speaks QMP, plays the guest behind it.

Only what the agent can see: the monitor's socket, the console's ring, the listeners that user-mode
networking forwards, and on them the documents and the workload of the reference guest. It reads
the config disks from the descriptors that it inherits, so that a tag misbehaves by the same
`GUEST_…` variables: NEVER_HEALTHY, HEALTHY_AFTER_S, SICK_AFTER_S, FREEZE_AFTER_S,
CONTAINER_EXIT_AFTER_S, SLOW_STAGE, POWEROFF_AFTER_S, RESET_AFTER_S, IGNORE_ACPI, HEALTH_HOST
(400 for another `Host`), and DEAD_PORT (nothing listens behind the shim, which answers 502, while
the containers run). Where there is a directory of orders beside it, the file named like the tag
says what its guests do for as long as it says so: `mute` (the monitor stays closed), `booting`,
`sick`, `dead`, `frozen`; or `reset`, which the first to hear of it obeys. The standard library
alone, to be up within 100 ms; `install` in `fake_vms` puts it into a place, with a key.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

WELL_KNOWN = "/.well-known/tinfoil-"
ORDERS = Path(__file__).with_name("orders")
LOOK_S = 0.02
BOOT = ("config", "network", "identity", "models", "containers", "shim")


def after(argv: list[str], option: str) -> list[str]:
    """Every value of an option."""
    return [argv[place + 1] for place, word in enumerate(argv) if word == option]


def disk(argv: list[str], node: str) -> Any:
    """The document on a config disk."""
    pairs = (pair.removeprefix("fd=").split(",set=") for pair in after(argv, "-add-fd"))
    sets = {number: fd for fd, number in pairs}
    for text in after(argv, "-blockdev"):
        block = json.loads(text)
        if block["node-name"] == node:
            fd = int(sets[block["file"]["filename"].rpartition("/")[2]])
            return json.loads(os.pread(fd, 2 << 20, 0).rstrip(b"\0"))
    raise KeyError(node)


class Guest:
    """What answers on the forwarded listeners, until it is off."""

    def __init__(self, argv: list[str], printed: Ring) -> None:
        config, self.external = disk(argv, "config"), disk(argv, "ext-config")
        self.tag = self.external["metadata"]["tag"]
        self.paths = config["shim"].get("paths") or []
        self.containers = [row["name"] for row in config["containers"]]
        env: dict[str, str] = {}
        for row in config["containers"]:
            for entry in row["env"]:
                env |= entry if isinstance(entry, dict) else {}
        self.env = env | {k: v for k, v in self.external["env"].items() if k in env}
        self.begin = time.monotonic()
        self.off = threading.Event()
        self.printed = printed
        self.listeners: list[socket.socket] = []

    def age(self) -> float:
        return time.monotonic() - self.begin

    def told(self, name: str) -> str | None:
        return self.env.get(f"GUEST_{name}")

    def ordered(self, word: str) -> bool:
        try:
            return bool((ORDERS / self.tag).read_text() == word)
        except OSError:
            return False

    def listen(self, forward: str, tls: ssl.SSLContext) -> None:
        """`tcp:ADDRESS:PORT-GUEST:GUESTPORT`."""
        host, _, guest = forward.partition("-")
        _, address, port = host.split(":")
        sock = socket.create_server((address, int(port)), backlog=128)
        self.listeners.append(sock)
        context = tls if guest.endswith(":443") else None
        threading.Thread(target=self._accept, args=(sock, context), daemon=True).start()

    def power_off(self) -> None:
        self.printed.write("guest: powering off\n")
        self.off.set()
        for sock in self.listeners:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, sock: socket.socket, tls: ssl.SSLContext | None) -> None:
        while not self.off.is_set():
            try:
                client, _ = sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client, tls), daemon=True).start()

    def _serve(self, client: socket.socket, tls: ssl.SSLContext | None) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            client.settimeout(120)
            stream = tls.wrap_socket(client, server_side=True) if tls else client
            with stream, stream.makefile("rb") as requests:
                while line := requests.readline():
                    host = ""
                    while header := requests.readline().strip():
                        if header.lower().startswith(b"host:"):
                            host = header[5:].strip().decode()
                    if self.off.is_set():
                        return
                    if self._since("FREEZE_AFTER_S") or self.ordered("frozen"):
                        self.off.wait()
                        return
                    path = line.split()[1].decode()
                    status, body = self.answer(path, host, shimmed=tls is not None)
                    text = json.dumps(body).encode()
                    stream.sendall(
                        b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n" % (status, len(text))
                        + text
                    )
                    if b"HTTP/1.0" in line:
                        return

    def answer(self, path: str, host: str, *, shimmed: bool) -> tuple[int, Any]:
        match path.removeprefix(WELL_KNOWN):
            case "boot-stages":
                return 200, self._stages()
            case "containers":
                return 200, {"containers": [self._container(name) for name in self.containers]}
            case "metrics":
                return 200, {"cpu_util": 1}
        if not self._healthy():
            return 503, {"error": {"message": "not yet", "type": "boot", "status": "pending"}}
        if shimmed and not self._lists(path.partition("?")[0]):
            return 404, {"error": {"message": "Not found.", "type": "invalid_request_error"}}
        if self.told("DEAD_PORT") or self.ordered("dead"):
            message = "The server had an error while processing your request."
            return 502, {"error": {"message": message, "type": "server_error"}}
        wanted = self.told("HEALTH_HOST")
        if wanted and path.endswith("health") and host != wanted:
            return 400, {"error": "no such host here"}
        return 200, {
            "version": self.tag,
            "id": self.external["metadata"]["id"],
            "env": self.external["env"],
        }

    def _lists(self, path: str) -> bool:
        """As the public shim reads its list."""
        for one in self.paths:
            if one == path or (one.endswith("/*") and path.startswith(one[:-1])):
                return True
        return not self.paths

    def _healthy(self) -> bool:
        late = float(self.told("HEALTHY_AFTER_S") or 0)
        good = not self.told("NEVER_HEALTHY") and not self._since("SICK_AFTER_S")
        return good and self.age() >= late and not self.ordered("sick")

    def _since(self, name: str) -> bool:
        """Whether the moment that a variable names has come."""
        told = self.told(name)
        return told is not None and self.age() >= float(told)

    def _stages(self) -> Any:
        slow, _, seconds = (self.told("SLOW_STAGE") or ":0").partition(":")
        slow = slow or BOOT[-1]
        waits = self.age() < float(seconds) or self.ordered("booting")
        rows = [
            {"name": name, "status": "pending" if waits and name == slow else "ok"}
            for name in BOOT
        ]
        done = None if waits else "2026-01-01T00:00:00Z"
        return {"stages": rows, "started_at": "2026-01-01T00:00:00Z", "completed_at": done}

    def _container(self, name: str) -> Any:
        exits = self.told("CONTAINER_EXIT_AFTER_S")
        if exits and name == self.containers[-1] and self.age() >= float(exits):
            return {"name": name, "status": "exited", "exit_code": 7}
        health = "healthy" if self._healthy() else "starting"
        return {"name": name, "status": "running", "health": {"status": health}}


class Ring:
    """The console's."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        with self._lock:
            self._data += text.encode()

    def take(self, count: int) -> bytes:
        with self._lock:
            taken = bytes(self._data[:count])
            del self._data[:count]
            return taken


class Machine:
    """The monitor's side: one client at a time, as with QEMU."""

    def __init__(self, argv: list[str]) -> None:
        self.uuid = after(argv, "-uuid")[0]
        self.ring = Ring()
        self.ring.write(f"guest: {self.uuid} boots\n")
        self.guest = Guest(argv, self.ring)
        self._client: socket.socket | None = None
        self._sending = threading.Lock()

    def serve(self, path: str) -> None:
        while self.guest.ordered("mute"):
            time.sleep(LOOK_S)
        Path(path).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen(1)
            threading.Thread(target=self._watch_guest, daemon=True).start()
            while True:
                client, _ = server.accept()
                with contextlib.suppress(OSError), client:
                    self._client = client
                    self._converse(client)
                self._client = None

    def _converse(self, client: socket.socket) -> None:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": "fake"}
        self._send({"QMP": {"version": version, "capabilities": []}})
        decode, text = json.JSONDecoder().raw_decode, ""
        while data := client.recv(65536):
            text = (text + data.decode()).lstrip()
            while text:  # a message ends where its JSON does: clients send no line ends
                try:
                    message, end = decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                answer = self._do(message["execute"], message.get("arguments") or {})
                self._send({"return": answer} | {k: message[k] for k in message if k == "id"})
                if message["execute"] == "quit":
                    self._event("SHUTDOWN", guest=False, reason="host-qmp-quit")
                    os._exit(0)

    def _do(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "query-uuid":
                return {"UUID": self.uuid}
            case "query-status":
                off = self.guest.off.is_set()
                ended = "guest-panicked" if self._panics() else "shutdown"
                return {"status": ended if off else "running", "running": not off}
            case "ringbuf-read":
                return base64.b64encode(self.ring.take(arguments["size"])).decode()
            case "system_powerdown":
                if not self.guest.told("IGNORE_ACPI"):
                    threading.Timer(0.01, self.guest.power_off).start()
        return {}

    def _watch_guest(self) -> None:
        alone, reset = self.guest.told("POWEROFF_AFTER_S"), self.guest.told("RESET_AFTER_S")
        if after_s := alone or reset or self._panics():
            self.guest.off.wait(float(after_s))
            self.guest.power_off()
        while ORDERS.exists() and not reset and not self.guest.off.wait(LOOK_S):
            if self.guest.ordered("reset"):
                (ORDERS / self.guest.tag).unlink()
                reset = "now"
                self.guest.power_off()
        self.guest.off.wait()
        if self._panics():  # as QEMU's pvpanic does, with -action panic=pause
            self._event("GUEST_PANICKED", action="pause")
            self._event("STOP")
            return
        reason = "guest-reset" if reset else "guest-shutdown"
        self._event("SHUTDOWN", guest=True, reason=reason)

    def _panics(self) -> str | None:
        return self.guest.told("PANIC_AFTER_S")

    def _event(self, name: str, **data: Any) -> None:
        stamp = {"seconds": 1, "microseconds": 0}
        with contextlib.suppress(OSError):
            self._send({"event": name, "data": data, "timestamp": stamp})

    def _send(self, message: Any) -> None:
        client = self._client
        if client is not None:
            with self._sending:
                client.sendall(json.dumps(message).encode() + b"\n")


def main(argv: list[str]) -> None:
    machine = Machine(argv)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(Path(__file__).with_name("guest.pem"))
    for text in after(argv, "-netdev"):
        for forward in json.loads(text).get("hostfwd", []):
            machine.guest.listen(forward["str"], tls)
    chardev = next(value for value in after(argv, "-chardev") if value.startswith("socket,id=qmp"))
    machine.serve(chardev.partition("path=")[2].partition(",server=")[0].replace(",,", ","))


if __name__ == "__main__":
    main(sys.argv[1:])
