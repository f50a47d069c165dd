"""The program of a unit with a network of its own: makes links and sockets there for the agent.

Descriptor 0 is a socket to the agent. The network ends with this program, which ends with that
socket, and so with the agent. It is run by its path, without the package.

    unit → agent     HERE
    agent → unit     {"ip": "LINES"} or {"sockets": NUMBER}
    unit → agent     DONE with the sockets, or what went wrong, in one line
"""

import contextlib
import json
import os
import socket
import subprocess
import sys

HERE, DONE = b"here", b"done"
MAX_BYTES = 16 << 10
MOST_SOCKETS = 64
_TOOL_S = 10.0


def main() -> int:
    """Until the agent is gone."""
    with socket.socket(fileno=os.dup(0)) as agent, contextlib.suppress(OSError):
        agent.send(HERE)
        while asked := agent.recv(MAX_BYTES):
            _answer(agent, json.loads(asked))
    return 0


def _answer(agent: socket.socket, asked: dict[str, object]) -> None:
    with contextlib.ExitStack() as made:
        sockets: list[int] = []
        try:
            if "ip" in asked:
                _ip(str(asked["ip"]))
            for _ in range(int(str(asked.get("sockets", 0)))):
                one = made.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                one.setblocking(False)
                sockets.append(one.fileno())
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            agent.send(str(error).encode()[:MAX_BYTES] or b"it failed")
        else:
            socket.send_fds(agent, [DONE], sockets)


def _ip(script: str) -> None:
    done = subprocess.run(
        ["ip", "-batch", "-"],
        input=script,
        capture_output=True,
        text=True,
        timeout=_TOOL_S,
        check=False,
    )
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]
        raise OSError(f"ip: {said}")


if __name__ == "__main__":
    sys.exit(main())
