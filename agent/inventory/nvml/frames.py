"""The frames between the agent and its NVML process: four bytes of length, then MessagePack.

One request is under way at a time; events come between. A frame that is longer than it may be, or
that is not one of these, means that the other side is not what it should be.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from agent.inventory.nvml.values import NvmlEvent, NvmlGpu, Trouble
from agent.model.gpu import CcMode
from agent.model.ids import Bdf

_LENGTH: Final = struct.Struct("!I")
HEAD_BYTES: Final = _LENGTH.size
MAX_FRAME_BYTES: Final = 256 << 10


class FrameError(ValueError):
    """Not a frame of ours."""


class _Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Base of the frames."""


class Open(_Frame, frozen=True, kw_only=True):
    """Load the library, touching no GPU. Answered by Opened or Failed."""


class Find(_Frame, frozen=True, kw_only=True):
    """Attach one GPU, which may take long, and hear its events. Answered by Found or Refused."""

    bdf: Bdf


class Look(_Frame, frozen=True, kw_only=True):
    """Tell everything about one GPU that was found. Answered by Looked."""

    bdf: Bdf


class Watch(_Frame, frozen=True, kw_only=True):
    """Tell events from now on. Answered by Watching."""


class Opened(_Frame, frozen=True, kw_only=True):
    """It is loaded."""

    driver_version: str | None
    cc_mode: CcMode | None


class Found(_Frame, frozen=True, kw_only=True):
    """It may be asked about."""


class Refused(_Frame, frozen=True, kw_only=True):
    """NVML does not let it be asked about; `error` is its code."""

    error: int


class Watching(_Frame, frozen=True, kw_only=True):
    """Events come from now on."""


class Looked(_Frame, frozen=True, kw_only=True):
    """All about one GPU."""

    gpu: NvmlGpu


class Failed(_Frame, frozen=True, kw_only=True):
    """It cannot be done; the process lives on."""

    trouble: Trouble


class Happened(_Frame, frozen=True, kw_only=True):
    """The driver told something by itself."""

    event: NvmlEvent


Request = Open | Find | Look | Watch
Answer = Opened | Found | Refused | Looked | Watching | Failed
Told = Answer | Happened

_encode = msgspec.msgpack.Encoder().encode
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_told: msgspec.msgpack.Decoder[Told] = msgspec.msgpack.Decoder(Told)


def pack(frame: Request | Told) -> bytes:
    """The bytes of a frame."""
    body = _encode(frame)
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """How many bytes follow the head. Raises FrameError."""
    (length,) = _LENGTH.unpack(head)
    if length > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes")
    return int(length)


def request_of(body: bytes) -> Request:
    """What the agent asks. Raises FrameError."""
    try:
        return _requests.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError("not a request") from error


def told_of(body: bytes) -> Told:
    """What the process tells. Raises FrameError."""
    try:
        return _told.decode(body)
    except msgspec.DecodeError as error:
        raise FrameError("not an answer") from error
