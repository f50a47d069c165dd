"""The manifest: what is right is read, and every wrong field is refused with its path."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest

from agent.releases.fields import ReleaseFieldError
from agent.releases.manifest import MAX_MANIFEST_BYTES, read_release
from agent.releases.port import ReleaseError
from tests.fakes.release_parts import CONFIG, manifest_members


def read(members: dict[str, Any]) -> Any:
    return read_release("hello", "v1.0.0", json.dumps(members).encode())


def spoiled(path: str, value: object) -> dict[str, Any]:
    """A manifest with one member replaced, or removed if the value is `...`."""
    members = manifest_members()
    *parents, last = path.split(".")
    place = members
    for name in parents:
        place = place[name]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return members


def test_a_right_manifest_is_read_in_full() -> None:
    members = manifest_members()
    data = json.dumps(members).encode()
    release = read_release("owner/hello", "v1.0.0", data)
    assert release.digest == hashlib.sha256(data).hexdigest()
    assert (release.repo, release.tag, release.cvm_version) == ("owner/hello", "v1.0.0", "0.11.0")
    assert release.layout == "virtio-pci"
    assert release.config == CONFIG
    assert release.cmdline == members["cmdline"]
    assert release.debug is False
    assert release.root_hash == members["hashes"]["root"]
    assert (release.kernel.name, release.kernel.sha256) == ("v0.11.0.vmlinuz", "6f" * 32)
    assert (release.initrd.name, release.initrd.sha256) == ("v0.11.0.initrd", "5e" * 32)
    assert (release.root_disk.name, release.root_disk.sha256) == ("v0.11.0.raw", None)
    assert release.firmware_sha256 == "4d" * 32
    assert release.snp_measurement == "1a" * 48
    assert release.tdx_measurement == {"rtmr1": "2b" * 48, "rtmr2": "3c" * 48}
    assert (release.demand.vcpus, release.demand.memory_mib, release.demand.gpus) == (2, 512, 0)
    assert release.env_names == ("REGION",)
    assert release.secret_names == ("API_KEY",)
    assert release.container_names == ("web",)
    assert release.start_period_s == 30.0
    assert release.shim.lets_through("/health")


def test_what_other_publishers_leave_out_may_be_missing() -> None:
    members = manifest_members()
    for name in ("snp_measurement", "tdx_measurement", "firmware"):
        del members[name]
    del members["hashes"]["version"]
    release = read(members)
    assert release.firmware_sha256 is release.snp_measurement is release.tdx_measurement is None
    assert release.kernel.name == "v0.11.0.vmlinuz"


def test_newer_fields_are_tolerated_wherever_they_are() -> None:
    members = manifest_members() | {"igvm": {"sha256": 7}, "format": 9}
    members["hashes"]["igvm"] = {"snp": "x"}
    members["vm_shape"]["nics"] = "two"
    members["firmware"]["tdx"] = []
    assert read(members).tag == "v1.0.0"


def test_debug_is_read_off_the_command_line() -> None:
    members = manifest_members()
    members["cmdline"] += " tinfoil-debug=on"
    assert read(members).debug is True
    members["cmdline"] = members["cmdline"].replace("debug=on", "debug=off")
    assert read(members).debug is False


HEX_FIELDS = {
    "snp_measurement": 48,
    "tdx_measurement.rtmr1": 48,
    "tdx_measurement.rtmr2": 48,
    "firmware.sev_snp.sha256": 32,
    "hashes.root": 32,
    "hashes.kernel": 32,
    "hashes.initrd": 32,
}
WRONG_TYPES = (7, True, 1.5, [], ["x"])


@pytest.mark.parametrize("path", HEX_FIELDS)
def test_hashes_are_lowercase_hex_of_their_length_and_nothing_else(path: str) -> None:
    size = HEX_FIELDS[path]
    wrong = ["", "ab" * (size - 1), "ab" * (size + 1), "AB" * size, "ag" * size, " " + "a" * 95]
    wrong += ["٣" * 2 * size, "ab" * size + "\n", {}, *WRONG_TYPES]
    for value in wrong:
        with pytest.raises(ReleaseFieldError) as refused:
            read(spoiled(path, value))
        assert refused.value.path == path, value


@pytest.mark.parametrize(
    ("path", "least", "most"),
    [
        ("vm_shape.cpus", 1, 1024),
        ("vm_shape.memory_mb", 1, 64 << 20),
        ("vm_shape.gpus", 0, 8),
        ("vm_shape.disks", 3, 27),
    ],
)
def test_shape_is_whole_numbers_within_bounds(path: str, least: int, most: int) -> None:
    for value in (least - 1, most + 1, -(10**30), 10**30, "2", 2.0, None, True, [], {}, ...):
        with pytest.raises(ReleaseFieldError) as refused:
            read(spoiled(path, value))
        assert refused.value.path == path, value


@pytest.mark.parametrize(
    "path",
    ["vm_shape", "cmdline", "hashes", "hashes.root", "hashes.kernel", "hashes.initrd", "config",
     "tdx_measurement.rtmr1", "tdx_measurement.rtmr2", "firmware.sev_snp.type",
     "firmware.sev_snp.version", "firmware.sev_snp.sha256"],
)  # fmt: skip
def test_a_missing_field_is_named(path: str) -> None:
    with pytest.raises(ReleaseFieldError, match="is missing") as refused:
        read(spoiled(path, ...))
    assert refused.value.path == path


@pytest.mark.parametrize("path", ["vm_shape", "hashes", "firmware", "firmware.sev_snp",
                                  "tdx_measurement"])  # fmt: skip
def test_a_map_is_nothing_else(path: str) -> None:
    for value in ("text", *WRONG_TYPES):
        with pytest.raises(ReleaseFieldError, match="must be a map") as refused:
            read(spoiled(path, value))
        assert refused.value.path == path


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "../v1", "a/b", "-x", "v1\n", "v1,readonly=off", "x" * 101, *WRONG_TYPES],
)
@pytest.mark.parametrize("path", ["hashes.version", "firmware.sev_snp.version"])
def test_a_version_is_one_plain_path_component(path: str, value: object) -> None:
    with pytest.raises(ReleaseFieldError) as refused:
        read(spoiled(path, value))
    assert refused.value.path == path


@pytest.mark.parametrize("value", ["igvm", "OVMF", "", *WRONG_TYPES])
def test_only_ovmf_is_known_as_firmware(value: object) -> None:
    with pytest.raises(ReleaseFieldError) as refused:
        read(spoiled("firmware.sev_snp.type", value))
    assert refused.value.path == "firmware.sev_snp.type"


RIGHT = manifest_members()["cmdline"]


@pytest.mark.parametrize(
    "value",
    [
        "",
        " " + RIGHT,
        RIGHT + " ",
        RIGHT.replace(" pci", "  pci"),
        RIGHT + "\ninit=/bin/sh",
        RIGHT + "\0",
        RIGHT + ' "a b"',
        RIGHT + " ä",
        RIGHT + " x" * 1024,
        RIGHT.replace("roothash=", "rootash="),
        RIGHT.replace("tinfoil-config-hash=", "config-hash="),
        RIGHT + " roothash=" + "ab" * 32,
        RIGHT + " tinfoil-config-hash=" + "ab" * 32,
        RIGHT + " roothash",
        RIGHT.replace("roothash=abab", "roothash=abac"),
        RIGHT.replace("tinfoil-config-hash=", "tinfoil-config-hash=0"),
        RIGHT.replace("roothash=abab", "roothash=ABAB"),
        {},
        *WRONG_TYPES,
    ],
)
def test_a_command_line_is_plain_words_with_both_hashes_once(value: object) -> None:
    with pytest.raises(ReleaseFieldError) as refused:
        read(spoiled("cmdline", value))
    assert refused.value.path == "cmdline"


@pytest.mark.parametrize(
    "value",
    [
        "!",
        "Y3Bz=",
        base64.b64encode(CONFIG).decode() + "\n",
        base64.b64encode(CONFIG).decode() + "====",
        base64.urlsafe_b64encode(b"\xff\xfe\xfd" * 4).decode(),
        "QQ",
        "QR==",  # decodes like QQ==, but its last bits are not zero
        "ä" * 8,
        base64.b64encode(b"#" * ((1 << 20) + 1)).decode(),
        {},
        *WRONG_TYPES,
    ],
)
def test_the_config_is_canonical_base64_of_at_most_a_mebibyte(value: object) -> None:
    with pytest.raises(ReleaseFieldError) as refused:
        read(spoiled("config", value))
    assert refused.value.path == "config"


def test_the_config_must_be_the_one_that_the_command_line_names() -> None:
    members = manifest_members()
    members["config"] = base64.b64encode(CONFIG + b"\n").decode()
    with pytest.raises(ReleaseFieldError, match="does not agree with the SHA-256 of config"):
        read(members)


@pytest.mark.parametrize(
    ("name", "value"), [("cpus", 3), ("memory_mb", 513), ("gpus", 1), ("disks", 4)]
)
def test_the_shape_must_be_the_configs(name: str, value: int) -> None:
    with pytest.raises(ReleaseFieldError, match=r"tinfoil-config\.yml makes it") as refused:
        read(manifest_members(**{name: value}))
    assert refused.value.path == f"vm_shape.{name}"


def test_models_and_volumes_count_as_disks_and_the_volumes_as_writable() -> None:
    config = CONFIG + (
        b"models:\n"
        b"  - {name: m, mpk: " + b"7a" * 32 + b"_4096_27fb23ac-db9b-5e25-991a-90fdf2c9b3a7}\n"
        b"volumes: [{name: data}, {name: cache}]\n"
    )
    release = read(manifest_members(config, disks=6))
    assert (release.models, release.volumes) == (("7a" * 32,), ("data", "cache"))
    assert release.demand.writable_volumes == 2


def test_an_image_of_another_version_than_the_config_wants_is_refused() -> None:
    with pytest.raises(ReleaseFieldError, match=r"cvm-version 0\.11\.0") as refused:
        read(spoiled("hashes.version", "v0.12.0"))
    assert refused.value.path == "hashes.version"
    assert read(spoiled("hashes.version", "0.11.0-rc1")).kernel.name == "0.11.0-rc1.vmlinuz"
    assert read(spoiled("hashes.version", "nightly")).kernel.name == "nightly.vmlinuz"


def test_an_image_version_without_a_layout_is_refused_by_name() -> None:
    config = CONFIG.replace(b"0.11.0", b"0.10.8")
    members = manifest_members(config)
    members["hashes"]["version"] = "v0.10.8"
    with pytest.raises(ReleaseError, match=r"cvm-version 0\.10\.8: no machine layout") as refused:
        read(members)
    assert refused.value.code == "release_invalid"


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"x"',
        b"{} {}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"vm_shape": NaN}',
        b'{"vm_shape": ' + b"9" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_object_is_refused(text: bytes) -> None:
    with pytest.raises(ReleaseError, match=r"^tinfoil-deployment\.json"):
        read_release("hello", "v1.0.0", text)


def test_a_member_that_is_there_twice_is_refused_at_every_depth() -> None:
    text = json.dumps(manifest_members())
    for member in ('"cpus": 2', '"config": ', '"rtmr1": '):
        twice = text.replace(member, '"cpus": 2, ' * (member == '"cpus": 2') + member, 1)
        if member != '"cpus": 2':
            twice = text.replace(member, member + '"x", ' + member, 1)
        with pytest.raises(ReleaseError, match="is there twice"):
            read_release("hello", "v1.0.0", twice.encode())


@pytest.mark.parametrize("path", ["cmdline", "hashes.root", "hashes.version", "config",
                                  "firmware.sev_snp.type", "newer"])  # fmt: skip
def test_a_value_of_ten_megabytes_is_refused_and_not_quoted(path: str) -> None:
    members = spoiled(path, "a" * 10_000_000)
    with pytest.raises(ReleaseError) as refused:
        read(members)
    assert str(MAX_MANIFEST_BYTES) in str(refused.value)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b/c", "a\nb", "a,b", "/a", "a/", "a b"])
def test_a_repo_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ReleaseError, match="not a release's name"):
        read_release(name, "v1.0.0", json.dumps(manifest_members()).encode())


@pytest.mark.parametrize("tag", ["", "..", "a/b", "v1\n", "-v", "v1,x", "v" * 129])
def test_a_tag_that_is_no_name_is_refused(tag: str) -> None:
    with pytest.raises(ReleaseError, match="not a release's name"):
        read_release("hello", tag, json.dumps(manifest_members()).encode())
