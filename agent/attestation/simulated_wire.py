"""What is said on the virtio-serial port `sim-psp` between a guest and its simulated processor.

    request    `SPSP`  version (1)  command  length (u16, little-endian)  payload
    answer     `SPSP`  version (1)  status   length (u16, little-endian)  payload

Command 1 (report) takes 64 bytes of report data and answers with the 1184 bytes of the report;
command 2 (chain) takes nothing and answers with a certificate table (AMD GHCB 4.1.8.1: 24 bytes an
entry, GUID, offset, length; ended by 24 zeros) of VCEK, ASK and ARK in DER. Status 0 is good; with
any other the payload is empty. Pure.
Invariant: a request is one of two exact lengths, known from its first 8 bytes. There is no way
back into step after anything else: whoever hears it hangs up.
"""

from __future__ import annotations

import struct
import uuid
from enum import IntEnum

from cryptography.hazmat.primitives import serialization

from agent.attestation.simulated_chain import SimulatedChain
from agent.attestation.simulated_report import REPORT_DATA_BYTES
from agent.errors import AgentError

HEADER_BYTES = 8
_MAGIC = b"SPSP"
_VERSION = 1
_HEADER = struct.Struct("<4sBBH")  # magic, version, command or status, payload's length
_ENTRY = struct.Struct("<16sII")
_VCEK = uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd")
_ASK = uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
_ARK = uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")


class Command(IntEnum):
    """What a guest may ask (append only)."""

    REPORT = 1
    CHAIN = 2


class Status(IntEnum):
    """How it went (append only)."""

    OK = 0
    UNAVAILABLE = 1  # the launch cannot be measured


PAYLOAD_BYTES = {Command.REPORT: REPORT_DATA_BYTES, Command.CHAIN: 0}


class WireError(AgentError):
    """Not a request."""

    @property
    def code(self) -> str:
        return "simulated_request_invalid"


def parse_header(header: bytes) -> Command:
    """What a request's first 8 bytes ask. Raises WireError."""
    magic, version, number, length = _HEADER.unpack(header)
    if magic != _MAGIC or version != _VERSION:
        raise WireError("the guest sent something that is no request")
    try:
        command = Command(number)
    except ValueError:
        raise WireError(f"the guest sent command {number}, which does not exist") from None
    if length != PAYLOAD_BYTES[command]:
        raise WireError(f"the guest sent {length} bytes with command {number}")
    return command


def answer(payload: bytes) -> bytes:
    """A good answer."""
    return _HEADER.pack(_MAGIC, _VERSION, Status.OK, len(payload)) + payload


def refusal(status: Status) -> bytes:
    """An answer that gives nothing."""
    return _HEADER.pack(_MAGIC, _VERSION, status, 0)


def certificate_table(chain: SimulatedChain) -> bytes:
    """VCEK, ASK and ARK as the hypervisor hands them to a guest."""
    blobs = [
        certificate.public_bytes(serialization.Encoding.DER)
        for certificate in (chain.vcek, chain.ask, chain.ark)
    ]
    offset = _ENTRY.size * (len(blobs) + 1)
    table = b""
    for guid, blob in zip((_VCEK, _ASK, _ARK), blobs, strict=True):
        table += _ENTRY.pack(guid.bytes, offset, len(blob))
        offset += len(blob)
    return table + bytes(_ENTRY.size) + b"".join(blobs)
