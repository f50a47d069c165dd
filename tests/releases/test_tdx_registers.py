"""The registers of a trust domain, before it is there: by genuine events, and by QEMU itself."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from agent.releases.authenticode import ImageUnfitError, authenticode_sha384
from agent.releases.tdx_registers import (
    extended,
    patched_by_qemu,
    register1_of,
    rtmr1,
    rtmr2,
)
from tests.fakes.argv_bench import cached_qemu
from tests.fakes.efi_kernels import efi_kernel
from tests.tdx_gpu_vectors import VECTORS, needs_vectors

CMDLINE = "readonly=on root=/dev/mapper/root"
INITRD = b"an initrd" * 1000
SETUP_DATA = 0x18  # fw_cfg's item of the header that QEMU hands to the firmware
HEADER_BYTES = 0x268
# A distribution's signed kernel, and its digest by osslsigncode.
KNOWN_KERNEL = "1a7ac0c40b10b98353b6f85fa9a0d4f2703287979567e19629d35ad2d777d124"
KNOWN_DIGEST = (
    "fafa6ba73c763f0f280fb429af0fb69dbf1634ce2fa2d3b6"
    "7d8db715b39841145aaf6b9bc3f69c8dfa008be54bae74d8"
)
GUEST_KERNEL = Path(__file__).parents[2] / ".cache" / "guest" / "guest-v0.12.0.vmlinuz"


@needs_vectors
def test_a_genuine_quote_has_the_registers_of_its_events():
    given = json.loads((VECTORS / "tdx-measure" / "lite.json").read_text())
    quote, events = bytes.fromhex(given["quote"]), json.loads(given["event_log"])

    def digests(register: int) -> list[bytes]:
        return [bytes.fromhex(one["digest"]) for one in events if one["imr"] == register]

    assert extended(digests(1)) == quote[424:472]
    assert extended(digests(2)) == quote[472:520]
    kernel, *_ = digests(1)
    assert register1_of(kernel) == quote[424:472]  # the other four are those of every boot


def test_the_second_register_is_of_command_line_and_initrd():
    words = (CMDLINE + " initrd=initrd").encode("utf-16-le") + b"\0\0"
    initrd = hashlib.sha384(INITRD).digest()
    first = hashlib.sha384(bytes(48) + hashlib.sha384(words).digest()).digest()
    assert rtmr2(CMDLINE, initrd) == hashlib.sha384(first + initrd).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": efi_kernel(body=b"\x91" * 512)},
        {"initrd_bytes": len(INITRD) + 4096},
        {"memory_mib": 1024},
    ],
)
def test_the_first_register_is_of_the_kernel_and_of_where_its_initrd_lies(
    change: Mapping[str, Any],
):
    one: dict[str, Any] = {
        "kernel": efi_kernel(),
        "initrd_bytes": len(INITRD),
        "cmdline": CMDLINE,
        "memory_mib": 4096,
    }
    assert rtmr1(**one) != rtmr1(**(one | change))
    assert rtmr1(**one) == rtmr1(**(one | {"memory_mib": 65536, "cmdline": "other=words"}))


def by_qemu(binary: str, kernel: Path, initrd: Path, memory_mib: int) -> bytes:
    """The head of what QEMU really hands to the firmware, read through the ports of fw_cfg."""
    argv = [
        *(binary, "-machine", "q35", "-accel", "qtest", "-qtest", "stdio"),
        *("-qtest-log", "/dev/null", "-nodefaults", "-display", "none"),
        *("-m", f"{memory_mib}M", "-kernel", str(kernel), "-initrd", str(initrd)),
        *("-append", CMDLINE),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as qemu:
        try:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            qemu.stdin.write(f"outw 0x510 {SETUP_DATA:#x}\n" + "inb 0x511\n" * HEADER_BYTES)
            qemu.stdin.flush()
            answers = [qemu.stdout.readline().split() for _ in range(HEADER_BYTES + 1)]
        finally:
            qemu.kill()
    return bytes(int(answer[1], 16) for answer in answers[1:])


KERNELS = {
    "modern": efi_kernel(),
    "limit of its own": efi_kernel(xloadflags=0, initrd_limit=0x1FFFFFFF),
    "above 4 GiB, whatever its limit": efi_kernel(xloadflags=0x02, initrd_limit=0x1FFFFFFF),
    "limit of 2 GiB": efi_kernel(xloadflags=0),
    "flags from before they counted": efi_kernel(protocol=0x20B, initrd_limit=0x1FFFFFFF),
    "oldest": efi_kernel(protocol=0x202),
    "heap and loader set": efi_kernel(loadflags=0x81, loader=0x71),
}


@pytest.mark.qemu
@pytest.mark.parametrize("memory_mib", [64, 1024, 2815, 2816, 4096])
def test_qemu_writes_into_the_header_what_is_predicted(memory_mib: int, tmp_path: Path):
    binary = cached_qemu("tdx")
    if binary is None:
        pytest.skip("no QEMU for tdx in .cache/qemu: scripts/fetch-qemu fetches it")
    initrd, path = tmp_path / "initrd", tmp_path / "kernel"
    initrd.write_bytes(INITRD)
    for name, kernel in KERNELS.items():
        path.write_bytes(kernel)
        found = by_qemu(binary, path, initrd, memory_mib)
        predicted = patched_by_qemu(kernel, len(INITRD), CMDLINE, memory_mib)
        assert found.hex() == predicted[:HEADER_BYTES].hex(), name
        assert predicted[HEADER_BYTES:] == kernel[HEADER_BYTES:]


@pytest.mark.skipif(not GUEST_KERNEL.is_file(), reason="no guest was built here")
def test_a_distribution_s_kernel_is_measured_without_its_signature():
    """Known answer: by osslsigncode (its calculated message digest, SHA-384)."""
    kernel = GUEST_KERNEL.read_bytes()
    at = struct.unpack_from("<I", kernel, 0x3C)[0] + 24 + 112 + 32
    begin, size = struct.unpack_from("<II", kernel, at)
    digest = authenticode_sha384(kernel)
    if hashlib.sha256(kernel).hexdigest() == KNOWN_KERNEL:
        assert digest.hex() == KNOWN_DIGEST
    if size:
        other = bytearray(kernel)
        other[begin + 8] ^= 1
        assert authenticode_sha384(bytes(other)) == digest


def test_the_digest_leaves_out_the_checksum_and_the_certificates():
    plain = efi_kernel()
    header = struct.unpack_from("<I", plain, 0x3C)[0]
    summed = bytearray(plain)
    summed[header + 24 + 64 : header + 24 + 68] = b"\xaa" * 4
    signed = bytearray(plain + b"\xcc" * 64)
    struct.pack_into("<II", signed, header + 24 + 112 + 32, len(plain), 64)
    digest = authenticode_sha384(plain)
    assert authenticode_sha384(bytes(summed)) == digest
    assert authenticode_sha384(bytes(signed)) == digest
    at = header + 24
    by_hand = plain[: at + 64] + plain[at + 68 : at + 144] + plain[at + 152 :]
    assert digest == hashlib.sha384(by_hand).digest()
    longer = by_hand + b"abc" + bytes(5)  # to a multiple of 8
    assert authenticode_sha384(plain + b"abc") == hashlib.sha384(longer).digest()


def test_sections_are_measured_in_the_order_of_the_file():
    assert authenticode_sha384(efi_kernel(swapped=True)) != authenticode_sha384(efi_kernel())
    header = 0x40
    plain, swapped = efi_kernel(), efi_kernel(swapped=True)
    table = slice(header + 24 + 240, header + 24 + 240 + 80)
    assert plain[: table.start] == swapped[: table.start]
    assert plain[table.stop :] == swapped[table.stop :]
    at = header + 24
    by_hand = swapped[: at + 64] + swapped[at + 68 : at + 144] + swapped[at + 152 :]
    assert authenticode_sha384(swapped) == hashlib.sha384(by_hand).digest()


def _cut(kernel: bytes, *changes: tuple[int, bytes]) -> bytes:
    data = bytearray(kernel)
    for at, value in changes:
        data[at : at + len(value)] = value
    return bytes(data)


OPTIONAL = 0x40 + 24
UNFIT: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "bzImage"),
    "a script": (b"#!/bin/sh\n" * 1000, "bzImage"),
    "an old protocol": (efi_kernel(protocol=0x201), "too old"),
    "a zImage": (efi_kernel(loadflags=0), "too old"),
    "no EFI stub": (_cut(efi_kernel(), (0, b"\0\0")), "CONFIG_EFI_STUB"),
    "no header of PE": (_cut(efi_kernel(), (0x40, b"XX")), "CONFIG_EFI_STUB"),
    "a header beyond the end": (_cut(efi_kernel(), (0x3C, b"\xff\xff\xff\x7f")), "CONFIG_EFI"),
    "another kind": (_cut(efi_kernel(), (OPTIONAL, b"\x0c\x01")), "unknown kind"),
    "a section beyond the end": (
        _cut(efi_kernel(), (OPTIONAL + 240 + 16, b"\xff\xff\xff\x7f")),
        "cut off",
    ),
    "cut off": (efi_kernel()[:-600], "cut off"),
    "certificates for all of it": (
        _cut(efi_kernel(), (OPTIONAL + 112 + 36, b"\xff\xff\0\0")),
        "overlap",
    ),
    "headers of nothing": (_cut(efi_kernel(), (OPTIONAL + 60, bytes(4))), "overlap"),
}


@pytest.mark.parametrize(("kernel", "text"), UNFIT.values(), ids=UNFIT.keys())
def test_what_is_not_measured_so_is_told(kernel: bytes, text: str):
    with pytest.raises(ImageUnfitError, match=text) as told:
        rtmr1(kernel, len(INITRD), CMDLINE, 4096)
    assert told.value.code == "kernel_unfit"


def test_what_qemu_would_do_more_is_not_predicted():
    with pytest.raises(ImageUnfitError, match="vga="):
        rtmr1(efi_kernel(), 1, "vga=ask", 4096)
    with pytest.raises(ImageUnfitError, match="cannot load into 64 MiB"):
        rtmr1(efi_kernel(), 64 << 20, CMDLINE, 64)
