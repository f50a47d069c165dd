"""Runs a command in a unit and ends it with another process, which it does nothing for.

    ends_with.py PID COMMAND...

A tool in a unit would outlive the agent that asked for it, and work on a device that the next
agent looks at. It is run by its path, without the package. Its exit status is the command's.
"""

import os
import select
import subprocess
import sys


def main(pid: str, *command: str) -> int:
    """128 and the signal's number for a command that a signal ended, as of a shell."""
    other = os.pidfd_open(int(pid))
    with subprocess.Popen(command) as started:
        poller = select.poll()
        poller.register(other, select.POLLIN)
        own = os.pidfd_open(started.pid)
        poller.register(own, select.POLLIN)
        if own not in dict(poller.poll()):
            started.kill()
    return started.returncode if started.returncode >= 0 else 128 - started.returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
