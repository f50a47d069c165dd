"""Carries out network calls in the namespace that it was started in: JSON lines in and out."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import sys
import threading
from pathlib import Path

held: list[socket.socket] = []


PATIENCE_S = 10.0  # with what answers: a packet lost is sent again after a second, then three


def connect(address: str, port: int, timeout: float = PATIENCE_S) -> socket.socket:
    return socket.create_connection((address, port), timeout)


def hello() -> str:
    return "hello"


def ask(address: str, port: int) -> str:
    with connect(address, port) as client:
        client.sendall(b"who\n")
        return client.recv(1000).decode().strip()


def outcome(address: str, port: int) -> str:
    try:
        connect(address, port, timeout=1).close()
    except ConnectionRefusedError:
        return "refused"
    except ConnectionResetError:
        return "reset"
    except TimeoutError:
        return "timed out"
    return "connected"


def datagram(address: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        sender.connect((address, port))
        try:
            sender.send(b"x")
            sender.recv(1)
        except ConnectionRefusedError:
            return "closed"
        except TimeoutError:
            return "unanswered"
        except OSError as error:
            return "prohibited" if error.errno == errno.EHOSTUNREACH else str(error)
    return "answered"


def flood(address: str, first_port: int, count: int, packets: int) -> str:
    """So many datagrams to each of so many ports."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for port in range(first_port, first_port + count):
            for _ in range(packets):
                with contextlib.suppress(OSError):  # told of a closed port before
                    sender.sendto(b"x", (address, port))
    return "sent"


def hold(address: str, port: int) -> str:
    client = connect(address, port)
    client.sendall(b"who\n")
    client.recv(1000)
    held.append(client)
    return "held"


def held_now(word: str) -> list[str]:
    ends = []
    for client in held:
        client.settimeout(5 if word else 1)
        try:
            if word:
                client.sendall(word.encode() + b"\n")
            ends.append("data" if client.recv(1) else "end")
        except ConnectionResetError:
            ends.append("reset")
        except TimeoutError:
            ends.append("idle")
    return ends


def serve(port: int) -> str:
    server = socket.create_server(("0.0.0.0", port))

    def answer(client: socket.socket, peer: str) -> None:
        with client, contextlib.suppress(OSError):
            while client.recv(1000):
                client.sendall(f"remote {peer}\n".encode())

    def loop() -> None:
        while True:
            client, peer = server.accept()
            threading.Thread(target=answer, args=(client, peer[0]), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()
    return "serving"


def localnet() -> str:
    for name in ("all", "eth0"):
        Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")
    return "routed"


VERBS = {
    "hello": hello,
    "ask": ask,
    "outcome": outcome,
    "datagram": datagram,
    "flood": flood,
    "hold": hold,
    "held": held_now,
    "serve": serve,
    "localnet": localnet,
}

for line in sys.stdin:
    verb, *arguments = json.loads(line)
    try:
        answer = VERBS[verb](*arguments)
    except OSError as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
