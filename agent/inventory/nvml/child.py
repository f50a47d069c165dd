"""The NVML process: asks the driver, writes what it says, ends with its standard input.

`python -m agent.inventory.nvml.child LIBRARY`. It holds the driver's handles, so that killing it
lets go of them. A thread of its own waits for the end of the input: also while a driver call
hangs, the process does not outlive the agent.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time

from agent.inventory.nvml.driver import DriverError, NvmlDriver, RefusedError
from agent.inventory.nvml.frames import (
    HEAD_BYTES,
    Answer,
    Failed,
    Find,
    Found,
    FrameError,
    Happened,
    Look,
    Looked,
    Open,
    Opened,
    Refused,
    Request,
    Told,
    Watch,
    Watching,
    length_of,
    pack,
    request_of,
)

_EVENT_WAIT_MS = 1000
_AFTER_TROUBLE_S = 5.0


class _Out:
    """Frames to the agent, whole ones, from any thread.

    What the driver's library prints must not come between: it goes to standard error.
    """

    def __init__(self) -> None:
        self._fd = os.dup(1)
        os.dup2(2, 1)
        self._lock = threading.Lock()

    def send(self, frame: Told) -> None:
        data = memoryview(pack(frame))
        with self._lock:
            while data:
                data = data[os.write(self._fd, data) :]


def _read_requests(requests: queue.Queue[Request]) -> None:
    """Until the agent is gone; then nothing is worth waiting for."""
    try:
        while True:
            requests.put(request_of(_exactly(length_of(_exactly(HEAD_BYTES)))))
    except (EOFError, FrameError):
        os._exit(0)


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(0, size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def _tell_events(driver: NvmlDriver, out: _Out) -> None:
    while True:
        try:
            event = driver.next_event(_EVENT_WAIT_MS)
        except DriverError:
            time.sleep(_AFTER_TROUBLE_S)  # a lost GPU answers at once, again and again
            continue
        if event is not None:
            out.send(Happened(event=event))


def _answer(driver: NvmlDriver, request: Request, out: _Out) -> Answer:
    try:
        match request:
            case Open():
                driver.open()
                return Opened(driver_version=driver.version(), cc_mode=driver.cc_mode())
            case Find(bdf=bdf):
                driver.find(bdf)
                return Found()
            case Look(bdf=bdf):
                return Looked(gpu=driver.look(bdf))
            case Watch():
                if driver.tells_events:
                    threading.Thread(target=_tell_events, args=(driver, out), daemon=True).start()
                return Watching()
    except RefusedError as error:
        return Refused(error=error.error)
    except DriverError as error:
        return Failed(trouble=error.trouble)


def main(library: str) -> None:
    """Serve until the input ends."""
    out, requests = _Out(), queue.Queue[Request]()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    driver = NvmlDriver(library)
    while True:
        out.send(_answer(driver, requests.get(), out))


if __name__ == "__main__":
    main(sys.argv[1])
