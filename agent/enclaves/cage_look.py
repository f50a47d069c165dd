"""A program in QEMU's place that looks whether a VM would find in its cage what it needs.

    python -I -S /proc/self/fd/N {"devices": [PATH], "sysfs": BOOL, "quotes": [CID, PORT] or PATH}

What cannot be had is on stdout, as a list in JSON. It is executed by a descriptor, without the
package, and imports nothing of it.
"""

import json
import os
import socket
import sys

DIAL_S = 2.0


def main(wanted: str) -> int:
    """The exit status."""
    asked = json.loads(wanted)
    lacks = []
    for path in asked["devices"]:
        try:
            os.close(os.open(path, os.O_RDWR))
        except OSError as error:
            lacks.append(f"{path}: {error.strerror}")
    if asked["sysfs"] and not os.path.isdir("/sys/bus"):  # noqa: PTH112
        lacks.append("/sys is not there")
    if asked["quotes"]:
        try:
            _dial(asked["quotes"])
        except OSError as error:
            lacks.append(f"the quote service at {asked['quotes']}: {error.strerror or error}")
    sys.stdout.write(json.dumps(lacks) + "\n")
    return 0


def _dial(where: str | list[int]) -> None:
    family = socket.AF_UNIX if isinstance(where, str) else socket.AF_VSOCK
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(DIAL_S)
        sock.connect(where if isinstance(where, str) else tuple(where))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
