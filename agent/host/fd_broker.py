"""The program of a unit that opens what the agent's own unit is closed to, and hands it over.

    fd_broker.py read PATH          a file, to be read without waiting
    fd_broker.py open PATH          a device, to be read and written
    fd_broker.py dial CID PORT      a connection to a port of a machine's own (vsock(7))

Descriptor 0 is a socket to the agent; all that is said over it is the descriptor. It is run by its
path, without the package. What went wrong is on stderr, in one line.
"""

import os
import socket
import sys

DIAL_S = 2.0


def main(kind: str, *where: str) -> int:
    """The exit status."""
    try:
        if kind == "read":
            descriptor = os.open(where[0], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        elif kind == "open":
            descriptor = os.open(where[0], os.O_RDWR | os.O_CLOEXEC)
        else:
            sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
            sock.settimeout(DIAL_S)
            sock.connect((int(where[0]), int(where[1])))
            descriptor = sock.detach()
    except OSError as error:
        sys.stderr.write(f"{error.strerror or error}\n")
        return 1
    with socket.socket(fileno=os.dup(0)) as agent:
        socket.send_fds(agent, [b"."], [descriptor])
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
