"""Manifests of a launch in one measured file: recognised, read, and held against themselves.

The members are those of the public image's manifests (format version 1, from v0.15.0 on): `igvm`
within `hashes` with `snp_launch` and `tdx_launch`. The compiler's own file has `launch` objects.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from agent.attestation.expected import expected_of
from agent.model.igvm import Igvm
from agent.model.release import Release
from agent.releases.fields import ReleaseFieldError
from agent.releases.manifest import read_release
from agent.releases.port import LaunchFormatError, ReleaseError
from tests.fakes.release_parts import CONFIG, manifest_members

SHA = hashlib.sha256(CONFIG.replace(b"0.11.0", b"0.15.0")).hexdigest()
NEWER = CONFIG.replace(b"0.11.0", b"0.15.0")
ZERO = "0" * 96
SNP = {
    "measurement": "1a" * 48,
    "policy": "0x30133",
    "host_data": SHA,
    "guest_svn": 0,
    "id_key_digest": ZERO,
}
TDX = {
    "mrtd": "2b" * 48,
    "mrconfigid": SHA + "0" * 32,
    **{f"rtmr{n}": ZERO for n in range(4)},
}
FILES = {"snp": "7a" * 32, "tdx": "8b" * 32}


def newer(**members: Any) -> dict[str, Any]:
    """A manifest of an image of that kind, without any launch yet."""
    found = manifest_members(NEWER)
    del found["firmware"]
    found["hashes"]["version"] = "v0.15.0"
    return found | members


def read(members: dict[str, Any]) -> Release:
    return read_release("hello", "v1.0.0", json.dumps(members).encode())


def in_hashes(igvm: dict[str, Any]) -> dict[str, Any]:
    found = newer()
    found["hashes"]["igvm"] = igvm
    return found


PLACES = {
    "of the image": in_hashes(
        {"format_version": 1, **FILES, "cmdline": "x", "snp_launch": SNP, "tdx_launch": TDX}
    ),
    "of the manifest": newer(igvm=FILES | {"snp_launch": SNP, "tdx_launch": TDX}),
    "in igvm.launch": newer(igvm=FILES | {"launch": {"snp": SNP, "tdx": TDX}}),
    "beside igvm": newer(igvm=FILES, launch={"snp": SNP, "tdx": TDX}),
    "all in one": newer(igvm=FILES, launch=SNP | TDX),
}


def igvm_of(members: dict[str, Any]) -> Igvm:
    found = read(members).igvm
    assert found is not None
    return found


@pytest.mark.parametrize("place", PLACES)
def test_the_files_and_what_their_launches_come_to_are_read(place: str) -> None:
    found = igvm_of(PLACES[place])
    assert (found.snp_sha256, found.tdx_sha256) == ("7a" * 32, "8b" * 32)
    assert found.snp is not None
    assert found.tdx is not None
    assert (found.snp.measurement, found.snp.policy) == ("1a" * 48, 0x30133)
    assert (found.snp.host_data, found.snp.guest_svn) == (SHA, 0)
    assert (found.tdx.mrtd, found.tdx.mrconfigid) == ("2b" * 48, SHA + "0" * 32)


def test_what_follows_from_the_config_need_not_be_said() -> None:
    bare = {name: SNP[name] for name in ("measurement", "policy")}
    found = igvm_of(newer(igvm=FILES | {"snp_launch": bare, "tdx_launch": {"mrtd": "2b" * 48}}))
    assert found.snp is not None
    assert found.tdx is not None
    assert (found.snp.host_data, found.tdx.mrconfigid) == (SHA, SHA + "0" * 32)


def test_nothing_else_is_booted_then() -> None:
    members = PLACES["of the manifest"]
    for name in ("cmdline", "snp_measurement", "tdx_measurement", "vm_shape"):
        members = {key: value for key, value in members.items() if key != name}
    members["hashes"] = {"version": "v0.15.0", "root": "ab" * 32}
    found = read(members)
    assert (found.kernel, found.initrd, found.cmdline) == (None, None, "")
    assert found.firmware_sha256 is None


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "hash of a file": ({"igvm": FILES | {"snp": "AB" * 32}}, "igvm.snp"),
    "policy": ({"snp": {"policy": "0x30000"}}, "igvm.snp_launch.policy"),
    "policy in words": ({"snp": {"policy": "0xyz"}}, "igvm.snp_launch.policy"),
    "measurement": ({"snp": {"measurement": "1a"}}, "igvm.snp_launch.measurement"),
    "another config's host data": ({"snp": {"host_data": "0" * 64}}, "igvm.snp_launch.host_data"),
    "svn": ({"snp": {"guest_svn": -1}}, "igvm.snp_launch.guest_svn"),
    "key": ({"snp": {"id_key_digest": "0"}}, "igvm.snp_launch.id_key_digest"),
    "mrtd": ({"tdx": {"mrtd": "x"}}, "igvm.tdx_launch.mrtd"),
    "mrconfigid": ({"tdx": {"mrconfigid": ZERO}}, "igvm.tdx_launch.mrconfigid"),
    "a register that is not zero": ({"tdx": {"rtmr2": "1" + ZERO[1:]}}, "igvm.tdx_launch.rtmr2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_with_its_path(name: str) -> None:
    changes, path = WRONG[name]
    igvm = changes.get("igvm", FILES) | {
        "snp_launch": SNP | changes.get("snp", {}),
        "tdx_launch": TDX | changes.get("tdx", {}),
    }
    with pytest.raises(ReleaseFieldError) as refused:
        read(newer(igvm=igvm))
    assert refused.value.path == path


def test_another_version_of_the_format_is_refused_by_name() -> None:
    with pytest.raises(LaunchFormatError, match=r"hashes\.igvm\.format_version") as refused:
        read(in_hashes({"format_version": 2, **FILES}))
    assert refused.value.code == "launch_format_unsupported"


@pytest.mark.parametrize("line", [b"cpus: 256", b"memory: 2095105"])
def test_a_machine_that_the_format_has_no_room_for_is_refused(line: bytes) -> None:
    name = line.partition(b":")[0]
    config = NEWER.replace(b"cpus: 2", line) if name == b"cpus" else NEWER
    config = config.replace(b"memory: 512", line) if name == b"memory" else config
    members = manifest_members(config, cpus=256 if name == b"cpus" else 2)
    members["hashes"]["version"] = "v0.15.0"
    members["vm_shape"]["memory_mb"] = 2095105 if name == b"memory" else 512
    with pytest.raises(ReleaseFieldError) as refused:
        read(members | {"igvm": FILES})
    assert refused.value.path == name.decode()


def test_a_launch_that_names_no_file_is_beside_what_is_booted() -> None:
    """As an interim tool published it: measured in one file, launched with firmware and kernel."""
    members = manifest_members() | {"igvm": {"snp_launch": SNP, "cmdline": "x"}}
    found = read(members)
    assert (found.igvm, found.kernel is not None) == (None, True)


@pytest.mark.parametrize("version", ["0.15.0", "0.15.0-rc6", "0.99.0", "1.0.0"])
def test_a_version_whose_launch_format_is_not_known_is_refused_by_name(version: str) -> None:
    members = manifest_members(CONFIG.replace(b"0.11.0", version.encode()))
    members["hashes"]["version"] = f"v{version}"
    with pytest.raises(LaunchFormatError, match=f"cvm-version {version}: no launch") as refused:
        read(members)
    assert refused.value.code == "launch_format_unsupported"


@pytest.mark.parametrize("version", ["0.12.0", "0.14.9"])
def test_versions_before_it_boot_a_kernel(version: str) -> None:
    members = manifest_members(CONFIG.replace(b"0.11.0", version.encode()))
    members["hashes"]["version"] = f"v{version}"
    assert read(members).layout == "virtio-pci"


@pytest.mark.parametrize("version", ["0.1.0", "3.0.0"])
def test_versions_of_another_publisher_are_not_looked_up_among_the_public_ones(
    version: str,
) -> None:
    config = CONFIG.replace(b"0.11.0", version.encode()) + b"cvm-source: {repo: acme/cvm}\n"
    members = manifest_members(config)
    members["hashes"]["version"] = f"v{version}"
    assert read(members).layout == "virtio-pci"
    with pytest.raises(ReleaseError, match=r"no (launch format|machine layout)"):
        read(manifest_members(config.partition(b"cvm-source")[0]) | {"hashes": members["hashes"]})


def test_another_kind_of_firmware_is_a_launch_format_that_is_not_known() -> None:
    members = manifest_members()
    members["firmware"]["sev_snp"]["type"] = "uefi"
    with pytest.raises(ReleaseFieldError) as refused:
        read(members)
    assert (refused.value.path, refused.value.code) == (
        "firmware.sev_snp.type",
        "launch_format_unsupported",
    )


def test_what_a_report_of_such_a_launch_must_say() -> None:
    expected = expected_of(read(PLACES["of the image"]))
    assert expected.snp_measurement == bytes.fromhex("1a" * 48)
    assert expected.host_data == bytes.fromhex(SHA)
    assert (expected.snp_policy, expected.guest_svn) == (0x30133, 0)
    assert expected.id_key_digest == bytes(48)
    assert expected.mrtd == bytes.fromhex("2b" * 48)
    assert expected.mrconfigid == bytes.fromhex(SHA) + bytes(16)
    assert (expected.rtmr0, expected.rtmr1, expected.rtmr2) == (bytes(48),) * 3


def test_what_a_report_of_a_kernel_boot_must_say_is_as_before() -> None:
    expected = expected_of(read(manifest_members()))
    assert expected.host_data == bytes(32)
    assert (expected.snp_policy, expected.mrtd, expected.rtmr0) == (None, None, None)
    assert expected.mrconfigid == bytes(48)
