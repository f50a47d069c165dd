"""Asks a deployment and the agent's local socket without a pause, and says what failed.

A program of the standard library alone, to be run inside a booted host. It ends when its standard
input does, and prints one JSON object.

    python steady_load.py HTTPS_PORT SOCKET
"""

import http.client
import json
import socket
import ssl
import sys
import threading
import time

PAUSE_S = 0.02


def guest(port):
    """One request to the guest on a connection of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise OSError(f"status {answer.status}")
        return json.loads(body)["version"]
    finally:
        connection.close()


def local(path):
    """One request to the agent's own socket."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(path)
        sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        line = sock.makefile("rb").readline()
        if not line.startswith(b"HTTP/1.1 "):
            raise OSError(f"answered {line!r}")
        return line.split()[1].decode()


def main(port, path):
    told = {"guest": 0, "local": 0, "failed": [], "seen": {}}
    stop = threading.Event()

    def ask(kind, one, target):
        while not stop.is_set():
            try:
                said = one(target)
                told["seen"].setdefault(kind, {}).setdefault(said, 0)
                told["seen"][kind][said] += 1
                told[kind] += 1
            except (OSError, http.client.HTTPException, ValueError) as error:
                told["failed"].append(f"{kind} {time.time():.3f}: {type(error).__name__} {error}")
            time.sleep(PAUSE_S)

    threads = [
        threading.Thread(target=ask, args=("guest", guest, port)),
        threading.Thread(target=ask, args=("local", local, path)),
    ]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps(told))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
