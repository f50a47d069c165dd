"""A signed SPDM measurement exchange, as NVIDIA's evidence carries it: strictly cut. Pure.

Source: DMTF DSP0274 (SPDM 1.1), GET_MEASUREMENTS and MEASUREMENTS; the signature is over the whole
request and the whole response before it. The request is 37 bytes; numbers are little-endian. The
report ends where its own sizes say: zero bytes after that are padding, anything else is refused.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.attestation.cursor import Cursor
from agent.attestation.evidence import EvidenceError

MAX_REPORT_BYTES = 32 << 10
NONCE_BYTES = 32
DIGEST_BYTES = 48

_SIGNATURE_BYTES = 96
_TRUNCATED = "gpu_report_truncated"
# Version 1.1, GET_MEASUREMENTS, signature requested, all measurements.
_REQUEST = bytes.fromhex("11e001ff")
# Version 1.1, MEASUREMENTS, no count (all were asked for), slot 0.
_RESPONSE = bytes.fromhex("11600000")
_DMTF = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementReport:
    """`signed`: the bytes under the signature. `opaque`: NVIDIA's fields by their number."""

    nonce: bytes
    device_nonce: bytes
    measurements: tuple[tuple[int, bytes], ...]
    opaque: dict[int, bytes]
    signed: bytes
    signature: bytes


def parse_report(data: bytes) -> MeasurementReport:
    """Cut a report. Raises EvidenceError, with the field, for whatever is not to the letter."""
    if len(data) > MAX_REPORT_BYTES:
        raise EvidenceError(
            "gpu_report_size", f"the report has more than {MAX_REPORT_BYTES} bytes"
        )
    cursor = Cursor(data, what="the report", code=_TRUNCATED)
    _expect(cursor, _REQUEST, "the SPDM request's head")
    nonce = cursor.take(NONCE_BYTES, "the request's nonce")
    _expect(cursor, b"\0", "the request's slot")
    _expect(cursor, _RESPONSE, "the SPDM response's head")
    count = cursor.number(1, "number of measurements")
    record = cursor.take(cursor.number(3, "size of the measurements"), "measurements")
    device_nonce = cursor.take(NONCE_BYTES, "the response's nonce")
    opaque = cursor.take(cursor.number(2, "size of the opaque data"), "opaque data")
    signed = data[: cursor.position]
    signature = cursor.take(_SIGNATURE_BYTES, "signature")
    _require_padding(data[cursor.position :], cursor.position)
    return MeasurementReport(
        nonce=nonce,
        device_nonce=device_nonce,
        measurements=_measurements(record, count),
        opaque=_opaque(opaque),
        signed=signed,
        signature=signature,
    )


def _require_padding(rest: bytes, end: int) -> None:
    """Collectors may hand out a buffer that is longer than the report."""
    if any(rest):
        raise EvidenceError(
            "gpu_report_trailing_data",
            f"{len(rest)} bytes follow the report's end at {end}, and not all are zero",
        )


def _expect(cursor: Cursor, wanted: bytes, field: str) -> None:
    found = cursor.take(len(wanted), field)
    if found != wanted:
        raise EvidenceError("gpu_report_kind", f"{field} is {found.hex()}, not {wanted.hex()}")


def _measurements(record: bytes, count: int) -> tuple[tuple[int, bytes], ...]:
    """DMTF digests with rising indices, exactly `count` of them."""
    cursor = Cursor(record, what="the measurements", code=_TRUNCATED)
    found: list[tuple[int, bytes]] = []
    while cursor.remaining:
        index = cursor.number(1, "index")
        specification = cursor.number(1, f"specification of {index}")
        block = Cursor(
            cursor.take(cursor.number(2, f"size of {index}"), f"measurement {index}"),
            what=f"measurement {index}",
            code=_TRUNCATED,
        )
        kind = block.number(1, "type")
        value = block.take(block.number(2, "size"), "value")
        block.end("gpu_measurements")
        # The type's top bit says that the value is raw, not a digest.
        if specification != _DMTF or kind & 0x80 or len(value) != DIGEST_BYTES:
            raise EvidenceError(
                "gpu_measurements",
                f"measurement {index} is no DMTF digest of {DIGEST_BYTES} bytes",
            )
        if found and index <= found[-1][0]:
            raise EvidenceError(
                "gpu_measurements", f"measurement {index} follows {found[-1][0]}: they must rise"
            )
        found.append((index, value))
    if len(found) != count or not found:
        raise EvidenceError(
            "gpu_measurements", f"{len(found)} measurements are there, {count} declared"
        )
    return tuple(found)


def _opaque(data: bytes) -> dict[int, bytes]:
    """Fields of (number, size, value), each number once."""
    cursor = Cursor(data, what="the opaque data", code=_TRUNCATED)
    fields: dict[int, bytes] = {}
    while cursor.remaining:
        number = cursor.number(2, "field number")
        if number in fields:
            raise EvidenceError("gpu_opaque_data", f"opaque field {number} is there twice")
        fields[number] = cursor.take(
            cursor.number(2, f"size of opaque field {number}"), f"opaque field {number}"
        )
    return fields
