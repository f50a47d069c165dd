"""Makes a release from a workload config and an image: what a publisher's workflow does, locally.

Order: the artifacts first, the manifest last and at once, so that a tag is never seen half-made. A
tag is immutable: other bytes for the same tag, or for the same image version, are refused. What is
made is read back through the very checks that a host makes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from agent.host.files import write_atomic
from agent.host.sparse import copy_sparse
from agent.model.measurement import MeasuredLaunch
from agent.model.release import Release
from agent.releases.fields import Field
from agent.releases.launch_digest import UnmeasurableError, snp_launch_digest
from agent.releases.layout import disks_of
from agent.releases.manifest import read_release
from agent.releases.naming import (
    IMAGE_VERSION,
    IMAGE_VERSION_RULE,
    IMAGES,
    MANIFEST,
    Kind,
    artifact_name,
)
from agent.releases.port import ReleaseError
from agent.releases.verify import check_file
from agent.releases.workload import MAX_CONFIG_BYTES, Workload, parse_workload
from agent.strict_json import StrictJsonError, load_strict_json

_BASE_CMDLINE = (
    "readonly=on pci=realloc,nocrs modprobe.blacklist=nouveau nouveau.modeset=0 "
    "root=/dev/mapper/root"
)
_DEBUG = "tinfoil-debug=on"
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_MAX_IMAGE_JSON = 1 << 20


class TagTakenError(ReleaseError):
    """The tag, or the image version, is there already with other content."""

    @property
    def code(self) -> str:
        return "release_exists"


@dataclass(frozen=True, slots=True)
class Image:
    """A built image: its `image.json`, with the files beside it.

    `pulls`: whether its guest gets what containers run by itself; the reference guest does not.
    """

    version: str
    root_hash: str
    sha256: dict[Kind, str | None]
    files: dict[Kind, Path]
    pulls: bool = True


@dataclass(frozen=True, slots=True)
class Built:
    """What was made. `fresh` is False if the very same release was there already."""

    release: Release
    manifest: Path
    fresh: bool


def read_image(path: Path) -> Image:
    """Read an `image.json`: {version, root, kernel, initrd, files: {kernel, initrd, raw}}."""
    try:
        value = load_strict_json(path.read_bytes()[: _MAX_IMAGE_JSON + 1])
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read") from error
    except StrictJsonError as error:
        raise ReleaseError(f"{path} is not JSON: {error}") from error
    root = Field(str(path), "", value)
    files = root.member("files")
    names = {Kind.KERNEL: "kernel", Kind.INITRD: "initrd", Kind.ROOT_DISK: "raw"}
    return Image(
        version=root.member("version").text(IMAGE_VERSION, IMAGE_VERSION_RULE),
        root_hash=root.member("root").hexadecimal(32),
        sha256={
            Kind.KERNEL: root.member("kernel").hexadecimal(32),
            Kind.INITRD: root.member("initrd").hexadecimal(32),
            Kind.ROOT_DISK: None,
        },
        files={
            kind: path.parent / files.member(name).text(_FILE_NAME, "must be a plain file name")
            for kind, name in names.items()
        },
        pulls=root.optional("hello") is None,  # which scripts/build-guest names in its own
    )


def build_release(
    *,
    config: bytes,
    image: Image,
    repo: str,
    tag: str,
    out: Path,
    debug: bool = False,
    snp_measurement: str | None = None,
    firmware: Path | None = None,
) -> Built:
    """Put a release under the source directory `out`.

    With `firmware` the release names it by its hash, and its launch digest is computed unless it
    is given. Hosts have firmware of their own (qemu.firmware_dir): the file is not published.
    Raises ReleaseError for bad input (with the field's path), TagTakenError for what exists with
    other content, StorageError or OSError for a disk that does not take it; a manifest is written
    only if all else went well.
    """
    if len(config) > MAX_CONFIG_BYTES:
        raise ReleaseError(f"the config is longer than {MAX_CONFIG_BYTES} bytes")
    workload = parse_workload(config)
    cmdline = _cmdline(config, image, debug)
    members: dict[str, object] = {}
    if firmware is not None:
        snp_measurement = snp_measurement or _measure(image, workload, cmdline, firmware)
        members["firmware"] = {"sev_snp": _firmware(firmware)}
    if snp_measurement is not None:
        members["snp_measurement"] = snp_measurement
    data = _manifest(config, workload, image, cmdline, members)
    release = read_release(repo, tag, data)
    target = out / repo / tag / MANIFEST
    fresh = not _same(target, data)
    for kind in Kind:
        _publish(image, kind, out / IMAGES)
    if fresh:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data, mode=0o644)
    return Built(release, target, fresh)


def _cmdline(config: bytes, image: Image, debug: bool) -> str:
    config_hash = hashlib.sha256(config).hexdigest()
    cmdline = f"{_BASE_CMDLINE} roothash={image.root_hash} tinfoil-config-hash={config_hash}"
    return f"{cmdline} {_DEBUG}" if debug else cmdline


def _measure(image: Image, workload: Workload, cmdline: str, firmware: Path) -> str:
    launch = MeasuredLaunch(
        vcpus=workload.cpus,
        firmware=firmware,
        kernel=image.files[Kind.KERNEL],
        initrd=image.files[Kind.INITRD],
        cmdline=cmdline,
    )
    try:
        return snp_launch_digest(launch).hex()
    except UnmeasurableError as error:
        raise ReleaseError(f"{firmware} cannot be the firmware of a release") from error


def _firmware(firmware: Path) -> dict[str, str]:
    """OVMF builds have no version that their file tells: it is named by its content."""
    digest = hashlib.sha256(firmware.read_bytes()).hexdigest()
    return {"type": "ovmf", "version": f"sha256-{digest[:16]}", "sha256": digest}


def _manifest(
    config: bytes, workload: Workload, image: Image, cmdline: str, members: dict[str, object]
) -> bytes:
    members = members | {
        "vm_shape": {
            "cpus": workload.cpus,
            "memory_mb": workload.memory_mib,
            "gpus": workload.gpus,
            "disks": disks_of(
                workload.cvm_version,
                models=len(workload.models),
                volumes=len(workload.volumes),
                foreign=workload.cvm_source is not None,
            ),
        },
        "cmdline": cmdline,
        "hashes": {
            "version": image.version,
            "root": image.root_hash,
            "initrd": image.sha256[Kind.INITRD],
            "kernel": image.sha256[Kind.KERNEL],
        },
        "config": base64.b64encode(config).decode(),
    }
    return json.dumps(members, indent=4).encode() + b"\n"


def _same(target: Path, data: bytes) -> bool:
    """Whether the tag exists with these bytes; with others it is refused."""
    try:
        there = target.read_bytes()
    except FileNotFoundError:
        return False
    if there != data:
        raise TagTakenError(f"{target} is there with another content: a tag never changes")
    return True


def _publish(image: Image, kind: Kind, directory: Path) -> None:
    """Have an artifact in the source: a copy, for the image's files may be written again.

    What is checked is the copy itself, before it has its name.
    """
    source = image.files[kind]
    target = directory / artifact_name(image.version, kind)
    sha256 = image.sha256[kind]
    key = f"verity-{image.root_hash}" if sha256 is None else f"sha256-{sha256}"
    if target.exists():
        try:
            check_file(target, key, _never)
        except ReleaseError as error:
            raise TagTakenError(
                f"{target} is there with another content: give the image another version"
            ) from error
        return
    directory.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.new")
    try:
        copy_sparse(source, fresh)
        check_file(fresh, key, _never)
        fresh.replace(target)
    except ReleaseError as error:
        raise ReleaseError(f"{source}: {error}") from error
    finally:
        fresh.unlink(missing_ok=True)


def _never() -> None:
    """Nobody abandons this."""
