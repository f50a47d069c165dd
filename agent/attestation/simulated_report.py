"""A SEV-SNP attestation report as a simulated processor gives it (AMD SEV-SNP ABI, table 23).

The layout is that of report version 3: 1184 bytes, of which the first 0x2A0 are signed.
"""

from __future__ import annotations

import struct

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agent.attestation.simulated_chain import TCB, SimulatedChain

REPORT_BYTES = 1184
REPORT_DATA_BYTES = 64
MEASUREMENT_BYTES = 48
_SIGNED_BYTES = 0x2A0
_NUMBER_BYTES = 72  # of each half of the signature, little-endian

_VERSION = 3
_POLICY = 0x30000  # SMT allowed, and the bit that must be one: what a launch asks for
_ECDSA_P384_SHA384 = 1
_SMT_ON = 1
_FIRMWARE = bytes((21, 55, 1))  # build, minor, major: 1.55.21
_MILAN = bytes((0x19, 0x01, 0x01))  # family, model, stepping
_NO_MIGRATION_AGENT = b"\xff" * 32


def make_report(
    chain: SimulatedChain, *, report_data: bytes, measurement: bytes, report_id: bytes
) -> bytes:
    """A signed report. `report_id`: 32 bytes, the same for as long as the VM lives."""
    body = bytearray(_SIGNED_BYTES)
    tcb = TCB.to_bytes()
    struct.pack_into("<IIQ", body, 0, _VERSION, 0, _POLICY)
    struct.pack_into("<II", body, 0x30, 0, _ECDSA_P384_SHA384)
    struct.pack_into("<Q", body, 0x40, _SMT_ON)
    for offset, field in (
        (0x38, tcb),
        (0x50, report_data),
        (0x90, measurement),
        (0x140, report_id),
        (0x160, _NO_MIGRATION_AGENT),
        (0x180, tcb),
        (0x188, _MILAN),
        (0x1A0, chain.chip_id),
        (0x1E0, tcb),
        (0x1E8, _FIRMWARE),
        (0x1EC, _FIRMWARE),
        (0x1F0, tcb),
    ):
        body[offset : offset + len(field)] = field
    return bytes(body) + _signature(chain, bytes(body))


def _signature(chain: SimulatedChain, body: bytes) -> bytes:
    r, s = decode_dss_signature(chain.key.sign(body, ec.ECDSA(hashes.SHA384())))
    halves = b"".join(number.to_bytes(_NUMBER_BYTES, "little") for number in (r, s))
    return halves.ljust(REPORT_BYTES - _SIGNED_BYTES, b"\0")
