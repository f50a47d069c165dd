"""What a unit's stop does: has the guest power off, without the agent, and then QEMU end.

QEMU takes a SIGTERM for an order to end at once, whatever its guest is doing. So systemd runs this
first (ExecStop): a talk over a monitor of its own, which nobody else holds. It never fails: what
it cannot reach, or what does not end within the grace, is left to systemd's signals.

It is run by its path, without the package, perhaps by a later version of the agent.

    python -I -S unit_stop.py SOCKET GRACE_S
"""

import json
import os
import socket
import sys
import time

_ANSWER_S = 10.0
_MAX_LINE = 1 << 20  # of what QEMU says, whoever has it in his hands
PRESS_AGAIN_S = 5.0  # a guest that still boots does not hear it
_ENDED = ("shutdown", "guest-panicked", "internal-error")


class _Monitor:
    """QMP, one request after another; raises OSError, ValueError."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._sock = sock
        sock.connect(path)
        self._lines = sock.makefile("rb")
        self._lines.readline(_MAX_LINE)  # the greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str) -> object:
        self._sock.sendall(json.dumps({"execute": command}).encode() + b"\n")
        while line := self._lines.readline(_MAX_LINE):
            answer = json.loads(line)
            if "event" not in answer:
                return answer.get("return")
        raise EOFError(command)

    def ended(self) -> bool:
        """Whether its guest does not go on."""
        status = self.ask("query-status")
        return isinstance(status, dict) and status.get("status") in _ENDED


def stop(path: str, grace_s: float) -> str:
    """Power the guest off; returns how it went."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_ANSWER_S)
        try:
            monitor = _Monitor(sock, path)
            ended = _power_off(monitor, time.monotonic() + grace_s)
            monitor.ask("quit")
        except (OSError, EOFError, ValueError) as error:
            return f"QEMU is not there to be asked: {error}"
    if grace_s <= 0:
        return "the guest was not asked: its image does not hear the power button"
    return "the guest powered off" if ended else f"the guest did not end within {grace_s:g} s"


def _power_off(monitor: _Monitor, deadline: float) -> bool:
    """Press the button, and again; whether the guest ended by the deadline."""
    press_at = 0.0
    while not (ended := monitor.ended()) and (now := time.monotonic()) < deadline:
        if now >= press_at:
            monitor.ask("system_powerdown")
            press_at = now + PRESS_AGAIN_S
        time.sleep(0.1)
    return ended


if __name__ == "__main__":
    # systemd runs it also when QEMU has ended by itself, and then names no main process.
    if "MAINPID" in os.environ:
        print(f"{sys.argv[1]}: {stop(sys.argv[1], float(sys.argv[2]))}")  # noqa: T201 - the journal's
