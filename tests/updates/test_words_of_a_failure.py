"""The console that is kept with a failure: from the stage that failed, without the firmware."""

from __future__ import annotations

import pytest

from agent.updates.engine.last_words import LIMIT, last_words

FIRMWARE = (
    "\x1bc\x1b[?7l\x1b[2JSeaBIOS (version 1.16.2-debian)\r\n\r\n\r\n"
    "iPXE (https://ipxe.org) 00:03.0 CA00 PCI2.10 PnP PMM\r\n"
    "Booting from ROM..\r\n"
)
OVMF = (
    'BdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)\r\n'
    "BdsDxe: starting Boot0001\r\nEFI stub: Loaded initrd from LINUX_EFI_INITRD_MEDIA_GUID\r\n"
)
GUEST = [
    "guest: [   0.100] image v0.12, root disk verified",
    "guest: [   0.200] boot stage config          ok",
    "guest: [   0.300] boot stage network         ok      10.0.0.2/24",
    "guest: [   0.400] asking the issuer for a certificate",
    "guest: [   9.400] issuer: 429 too many certificates",
    "guest: [   9.500] boot stage certificate     failed  429",
    "guest: [   9.600] boot failed in stage certificate; parked",
]


@pytest.mark.parametrize("noise", [FIRMWARE, OVMF, FIRMWARE + OVMF])
def test_what_firmware_says_of_itself_is_left_out(noise: str) -> None:
    assert last_words(noise + "\r\n".join(GUEST)) == "\n".join(GUEST)


def test_it_begins_with_the_stage_that_failed() -> None:
    text = FIRMWARE + "\n".join(GUEST)
    assert last_words(text, "certificate", "network").split("\n") == GUEST[3:]
    assert last_words(text, "certificate").split("\n") == GUEST[5:]
    assert last_words(text, None, "network").split("\n") == GUEST[3:]


def test_a_console_that_tells_no_stages_apart_is_kept_whole() -> None:
    text = "loading certificate model\nout of memory\n"
    assert last_words(text, "certificate", "network") == text
    assert last_words("\n".join(GUEST), "net", "work") == "\n".join(GUEST)  # no word of its own
    assert last_words("guest: boot stage shim ok", None, "shim") == "guest: boot stage shim ok"


def test_a_kernel_that_says_firmware_is_no_firmware() -> None:
    text = "[    0.000000] Linux version 6.12\nBooting from the wrong disk, says the workload\nx"
    assert last_words(text) == text


def test_it_is_bounded_to_the_newest_whole_lines() -> None:
    text = "\n".join(f"line {n:06}" for n in range(5000))
    kept = last_words(text)
    assert len(kept) <= LIMIT
    assert kept.split("\n")[0].startswith("line 00")
    assert kept.endswith("line 004999")
    assert len(last_words("x" * 100_000)) == LIMIT


@pytest.mark.parametrize("text", ["", "\n", "\x1b", "\x1b[", "\x1b]0;title", "\r\r\n"])
def test_any_text_gives_an_answer(text: str) -> None:
    assert "\x1b[" not in last_words(text, "a", "b")
