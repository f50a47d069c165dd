"""Command lines of launches in one measured file (IGVM).

No QEMU that can be had has all that they need, so that none was tried: their golden files say so
in their first line. What they must have is the public image's description of its launch.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from pathlib import Path

import pytest

from agent.enclaves.argv import build_argv
from agent.enclaves.spec import IgvmFile, InheritedFile, PlainTee, SpecError, VmSpec
from tests.fakes import vm_specs

GOLDEN = Path(__file__).parents[1] / "golden" / "argv_untried"
MARK = "# not tried on any QEMU\n"
CONFIG_SHA256 = bytes.fromhex("c3" * 32)


def guest_of(spec: VmSpec) -> dict[str, object]:
    argv = build_argv("qemu", spec)
    objects = [json.loads(argv[i + 1]) for i, word in enumerate(argv) if word == "-object"]
    (found,) = [one for one in objects if one["id"] == "tee"]
    return dict(found)


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_the_command_line_is_the_golden_one_that_was_tried_on_no_qemu(kind: str) -> None:
    argv = build_argv("qemu-system-x86_64", vm_specs.of_one_file(kind))
    text = MARK + "".join(f"{word}\n" for word in argv)
    file = GOLDEN / f"{kind}-igvm.txt"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(text)
    assert file.read_text() == text


@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_nothing_but_the_file_is_booted(kind: str) -> None:
    argv = build_argv("qemu", vm_specs.of_one_file(kind))
    assert {"-bios", "-kernel", "-initrd", "-append"}.isdisjoint(argv)
    assert json.dumps(
        {"qom-type": "igvm-cfg", "id": "igvm", "file": "/proc/self/fd/30"}, separators=(",", ":")
    ) in argv  # fmt: skip
    assert argv[argv.index("-machine") + 1].endswith(",igvm-cfg=igvm")


def test_an_snp_guest_has_the_policy_of_the_file_and_the_config_as_host_data() -> None:
    guest = guest_of(vm_specs.of_one_file("snp"))
    assert (guest["policy"], guest["measure-bsp-only"]) == (0x30133, True)
    assert (guest["cbitpos"], guest["reduced-phys-bits"]) == (51, 5)
    assert base64.b64decode(str(guest["host-data"])) == CONFIG_SHA256
    assert "kernel-hashes" not in guest


def test_a_trust_domain_has_the_config_in_its_register() -> None:
    guest = guest_of(vm_specs.of_one_file("tdx"))
    assert base64.b64decode(str(guest["mrconfigid"])) == CONFIG_SHA256 + bytes(16)
    assert base64.b64decode(str(guest["mrowner"])) == bytes(48)


def test_what_is_in_the_file_is_not_given_beside_it() -> None:
    spec = vm_specs.of_one_file("snp")
    for change in (
        {"cmdline": "root=/dev/vda"},
        {"kernel": InheritedFile(31)},
        {"firmware": InheritedFile(31)},
    ):
        with pytest.raises(SpecError, match="one measured file has"):
            dataclasses.replace(spec, **change)
    with pytest.raises(SpecError, match="only a confidential VM"):
        dataclasses.replace(spec, tee=PlainTee())
    with pytest.raises(SpecError, match="a kernel and an initrd"):
        dataclasses.replace(spec, igvm=None)
    with pytest.raises(SpecError, match="32 bytes"):
        IgvmFile(InheritedFile(30), b"")
