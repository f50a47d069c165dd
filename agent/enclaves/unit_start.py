"""The first program of an enclave's unit: it is handed the VM's descriptors, and becomes QEMU.

systemd starts a unit's program with descriptors 0, 1 and 2 alone. So 0 is a socket to the agent,
over which come the others, to be put at the numbers that QEMU's arguments name.

It is run by its path, without the package, and imports what starts at once. Order of the talk:

    unit → agent     HERE; the kernel adds who it is: the first that anybody knows of its user
    agent → unit     {argv, environment, numbers} and the descriptors, after one more of a pipe
    (exec)           closes the pipe; what kept it from being done is written there first
"""

import contextlib
import fcntl
import json
import os
import socket
import sys

HERE = b"here"
MAX_BYTES = 128 << 10
MAX_DESCRIPTORS = 64
_PATIENCE_S = 60


def main() -> int:
    """Does not return where all goes well."""
    with socket.socket(fileno=os.dup(0)) as agent:
        agent.settimeout(_PATIENCE_S)
        agent.send(HERE)
        data, descriptors, _, _ = socket.recv_fds(agent, MAX_BYTES, MAX_DESCRIPTORS)
    if not descriptors:
        sys.stderr.write("the agent went away before it handed the VM over\n")
        return 1
    pipe, *inherited = descriptors
    try:
        order = json.loads(data)
        pipe, *inherited = _apart(descriptors, above=max([2, *order["numbers"]]))
        for number, descriptor in zip(order["numbers"], inherited, strict=True):
            os.dup2(descriptor, number)
            os.close(descriptor)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        program = _find(order["argv"][0], order["environment"])
        os.execve(program, order["argv"], order["environment"])  # noqa: S606 - its very purpose
    except (OSError, ValueError, KeyError) as error:
        with contextlib.suppress(OSError):
            os.write(pipe, str(error).encode())
    return 1


def _apart(descriptors: list[int], above: int) -> list[int]:
    """The same, under numbers that are nobody's: so none is overwritten by another's place."""
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, above + 1) for one in descriptors]
    for one in descriptors:
        os.close(one)
    return moved


def _find(program: str, environment: dict[str, str]) -> str:
    """Its path. Raises FileNotFoundError."""
    if os.sep in program:
        return program
    for directory in os.get_exec_path(environment):
        path = os.path.join(directory, program)  # noqa: PTH118 - pathlib takes longer to import
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f"there is no {program}")


if __name__ == "__main__":
    sys.exit(main())
