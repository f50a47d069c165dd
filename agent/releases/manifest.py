"""`tinfoil-deployment.json`: read strictly, and held against itself.

What comes out agrees with itself: the command line's two hashes are those of the root disk and of
the config's bytes, and the VM's shape is the config's. Fields that a newer publisher adds are
tolerated; the known ones are checked to the letter, and each complaint names its path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections import Counter

import msgspec

from agent.model.ids import parse_repo, parse_tag
from agent.model.release import Artifact, Release
from agent.model.resources import Demand
from agent.releases.fields import Field, ReleaseFieldError
from agent.releases.layout import VERSION, layout_for, oldest_version, parse_version
from agent.releases.naming import (
    CONFIG,
    IMAGE_VERSION,
    IMAGE_VERSION_RULE,
    MANIFEST,
    Kind,
    artifact_name,
)
from agent.releases.port import ReleaseError
from agent.releases.workload import (
    MAX_CONFIG_BYTES,
    MAX_CPUS,
    MAX_DATA_DISKS,
    MAX_GPUS,
    MAX_MEMORY_MIB,
    Workload,
    parse_workload,
)

MAX_MANIFEST_BYTES = 2 << 20
# Longer command lines are cut by the kernel (COMMAND_LINE_SIZE, arch/x86).
MAX_CMDLINE = 2047
FIXED_DISKS = 3  # root, config, external config
# What an enclave writes on the host's disk: its bounded console log, with room to rotate.
DISK_MIB = 16

# Plain words only: in a quoted part of a command line a reader and the kernel could differ.
_CMDLINE = re.compile(r"[!#-~]+( [!#-~]+)*")
_CMDLINE_RULE = "must be printable words without quotes, one space between them"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """`vm_shape`."""

    cpus: int
    memory_mib: int
    gpus: int
    disks: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that this agent knows. `image_version` None: the config's version names it."""

    image_version: str | None
    root_hash: str
    kernel_sha256: str
    initrd_sha256: str
    cmdline: str
    debug: bool
    shape: Shape
    config: bytes
    firmware_sha256: str | None
    snp_measurement: str | None
    tdx_measurement: dict[str, str] | None


def read_release(repo: str, tag: str, data: bytes) -> Release:
    """Turn a manifest's bytes into a release that was checked in full.

    Raises ReleaseFieldError (with the document and the path), or ReleaseError for an image version
    that this agent has no machine for.
    """
    try:
        parse_repo(repo)
        parse_tag(tag)
    except ValueError as error:
        raise ReleaseError(f"not a release's name: {error}") from None
    manifest = parse_manifest(data)
    workload = parse_workload(manifest.config)
    _check_shape(manifest.shape, workload)
    image_version = _image_version(manifest, workload)
    layout = layout_for(workload.cvm_version)
    if layout is None:
        raise ReleaseError(
            f"{CONFIG}: cvm-version {workload.cvm_version}: no machine layout is known for it; "
            f"the oldest image version that this agent boots is {oldest_version()}"
        )
    return _assemble(
        repo=repo,
        tag=tag,
        digest=hashlib.sha256(data).hexdigest(),
        layout=layout,
        image_version=image_version,
        manifest=manifest,
        workload=workload,
    )


def _assemble(
    *,
    repo: str,
    tag: str,
    digest: str,
    layout: str,
    image_version: str,
    manifest: Manifest,
    workload: Workload,
) -> Release:
    return Release(
        repo=repo,
        tag=tag,
        digest=digest,
        cvm_version=workload.cvm_version,
        layout=layout,
        cmdline=manifest.cmdline,
        debug=manifest.debug,
        config=manifest.config,
        root_hash=manifest.root_hash,
        kernel=_artifact(image_version, Kind.KERNEL, manifest.kernel_sha256),
        initrd=_artifact(image_version, Kind.INITRD, manifest.initrd_sha256),
        root_disk=_artifact(image_version, Kind.ROOT_DISK, None),
        firmware_sha256=manifest.firmware_sha256,
        snp_measurement=manifest.snp_measurement,
        tdx_measurement=manifest.tdx_measurement,
        demand=Demand(
            gpus=workload.gpus,
            memory_mib=workload.memory_mib,
            vcpus=workload.cpus,
            disk_mib=DISK_MIB,
            writable_volumes=len(workload.volumes),
        ),
        models=workload.models,
        volumes=workload.volumes,
        inbound_ports=workload.inbound_ports,
        container_names=workload.container_names,
        env_names=workload.env_names,
        secret_names=workload.secret_names,
        start_period_s=workload.start_period_s,
        shim=workload.shim,
        boot_wait_s=workload.boot_wait_s,
        tls_mode=workload.tls_mode,
    )


def parse_manifest(data: bytes) -> Manifest:
    """Read the manifest alone; its config is decoded and hashed, not parsed."""
    root = Field(MANIFEST, "", _load_json(data))
    hashes = root.member("hashes")
    version = hashes.optional("version")
    root_hash = hashes.member("root").hexadecimal(32)
    config = _config(root.member("config"))
    cmdline = root.member("cmdline")
    words = _words(cmdline)
    _check_word(cmdline, words, "roothash", root_hash, "hashes.root")
    config_hash = hashlib.sha256(config).hexdigest()
    _check_word(cmdline, words, "tinfoil-config-hash", config_hash, "the SHA-256 of config")
    snp = root.optional("snp_measurement")
    return Manifest(
        image_version=version.text(IMAGE_VERSION, IMAGE_VERSION_RULE) if version else None,
        root_hash=root_hash,
        kernel_sha256=hashes.member("kernel").hexadecimal(32),
        initrd_sha256=hashes.member("initrd").hexadecimal(32),
        cmdline=cmdline.text(),
        debug="tinfoil-debug=on" in words,
        shape=_shape(root.member("vm_shape")),
        config=config,
        firmware_sha256=_firmware(root.optional("firmware")),
        snp_measurement=snp.hexadecimal(48) if snp else None,
        tdx_measurement=_tdx(root.optional("tdx_measurement")),
    )


def _load_json(data: bytes) -> object:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ReleaseFieldError(MANIFEST, "", f"longer than {MAX_MANIFEST_BYTES} bytes")
    try:
        return json.loads(
            data.decode(), object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except UnicodeDecodeError:
        raise ReleaseFieldError(MANIFEST, "", "not UTF-8") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ReleaseFieldError(MANIFEST, "", f"not JSON: {error.msg} ({place})") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ReleaseFieldError(MANIFEST, "", f"not JSON: {reason[:200]}") from None


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        names = Counter(name for name, _ in pairs)
        raise ValueError(f"the member {names.most_common(1)[0][0][:64]!r} is there twice")
    return members


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _config(field: Field) -> bytes:
    text = field.text()
    rule = "must be base64 in its canonical form"
    try:
        config = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise field.error(rule) from None
    if base64.b64encode(config).decode() != text:
        raise field.error(rule)
    if len(config) > MAX_CONFIG_BYTES:
        raise field.error(f"must hold at most {MAX_CONFIG_BYTES} bytes")
    return config


def _words(cmdline: Field) -> list[str]:
    text = cmdline.text()
    if len(text) > MAX_CMDLINE:
        raise cmdline.error(f"must be at most {MAX_CMDLINE} characters")
    return cmdline.text(_CMDLINE, _CMDLINE_RULE).split(" ")


def _check_word(cmdline: Field, words: list[str], name: str, value: str, meaning: str) -> None:
    found = [word.partition("=")[2] for word in words if word.partition("=")[0] == name]
    if len(found) != 1:
        raise cmdline.error(f"must have one {name}=, has {len(found)}")
    if found[0] != value:
        raise cmdline.error(f"{name}= does not agree with {meaning}")


def _shape(field: Field) -> Shape:
    return Shape(
        cpus=field.member("cpus").integer(1, MAX_CPUS),
        memory_mib=field.member("memory_mb").integer(1, MAX_MEMORY_MIB),
        gpus=field.member("gpus").integer(0, MAX_GPUS),
        disks=field.member("disks").integer(FIXED_DISKS, FIXED_DISKS + MAX_DATA_DISKS),
    )


def _firmware(field: Field | None) -> str | None:
    snp = field.optional("sev_snp") if field else None
    if snp is None:
        return None
    kind = snp.member("type")
    if kind.text() != "ovmf":
        raise kind.error("must be ovmf: no other firmware is known to this agent")
    snp.member("version").text(IMAGE_VERSION, IMAGE_VERSION_RULE)
    return snp.member("sha256").hexadecimal(32)


def _tdx(field: Field | None) -> dict[str, str] | None:
    if field is None:
        return None
    return {name: field.member(name).hexadecimal(48) for name in ("rtmr1", "rtmr2")}


def _check_shape(shape: Shape, workload: Workload) -> None:
    disks = FIXED_DISKS + len(workload.models) + len(workload.volumes)
    pairs = {
        "cpus": (shape.cpus, workload.cpus),
        "memory_mb": (shape.memory_mib, workload.memory_mib),
        "gpus": (shape.gpus, workload.gpus),
        "disks": (shape.disks, disks),
    }
    for name, (stated, wanted) in pairs.items():
        if stated != wanted:
            raise ReleaseFieldError(
                MANIFEST, f"vm_shape.{name}", f"is {stated}, but {CONFIG} makes it {wanted}"
            )


def _image_version(manifest: Manifest, workload: Workload) -> str:
    """The version that names the files. Older publishers leave it to the config."""
    version = manifest.image_version
    if version is None:
        return f"v{workload.cvm_version.removeprefix('v')}"
    if VERSION.fullmatch(version) and parse_version(version) != parse_version(
        workload.cvm_version
    ):
        raise ReleaseFieldError(
            MANIFEST,
            "hashes.version",
            f"is {version}, but {CONFIG} has cvm-version {workload.cvm_version}",
        )
    return version


def _artifact(image_version: str, kind: Kind, sha256: str | None) -> Artifact:
    return Artifact(name=artifact_name(image_version, kind), sha256=sha256)
