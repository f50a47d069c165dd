"""`tinfoil-deployment.json`: read strictly, and held against itself.

What comes out agrees with itself: the command line's two hashes are those of the root disk and of
the config's bytes, and the VM's shape is the config's. Fields that a newer publisher adds are
tolerated; the known ones are checked to the letter, and each complaint names its path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

import msgspec

from agent.model.ids import parse_repo, parse_tag
from agent.model.igvm import Igvm
from agent.model.release import Artifact, Release
from agent.model.resources import Demand
from agent.model.shape import FIXED_DISKS
from agent.releases.cmdline import check_word, cmdline_words
from agent.releases.fields import Field, ReleaseFieldError
from agent.releases.guest_rules.check import refusals
from agent.releases.igvm import check_size, is_igvm, read_igvm
from agent.releases.layout import (
    VERSION,
    boots_kernel,
    disks_of,
    layout_for,
    oldest_version,
    parse_version,
)
from agent.releases.naming import (
    CONFIG,
    IMAGE_VERSION,
    IMAGE_VERSION_RULE,
    MANIFEST,
    Kind,
    artifact_name,
)
from agent.releases.port import LaunchFormatError, ReleaseError
from agent.releases.workload import (
    MAX_CONFIG_BYTES,
    MAX_CPUS,
    MAX_DATA_DISKS,
    MAX_GPUS,
    MAX_MEMORY_MIB,
    Workload,
    parse_workload,
)
from agent.strict_json import StrictJsonError, load_strict_json

MAX_MANIFEST_BYTES = 2 << 20
# What an enclave writes on the host's disk: its bounded console log, with room to rotate.
DISK_MIB = 16


class FirmwareKindError(ReleaseFieldError):
    """The release boots a kind of firmware that this agent does not know."""

    @property
    def code(self) -> str:
        return "launch_format_unsupported"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """`vm_shape`."""

    cpus: int
    memory_mib: int
    gpus: int
    disks: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The fields that this agent knows. `image_version` None: the config's version names it.

    With `igvm` there need be no kernel, initrd, command line or firmware.
    """

    image_version: str | None
    root_hash: str
    igvm: Igvm | None
    kernel_sha256: str | None
    initrd_sha256: str | None
    cmdline: str
    debug: bool
    shape: Shape | None
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
    if manifest.shape is not None:
        _check_shape(manifest.shape, workload)
    image_version = _image_version(manifest, workload)
    return _assemble(
        repo=repo,
        tag=tag,
        digest=hashlib.sha256(data).hexdigest(),
        layout=_layout(manifest, workload),
        image_version=image_version,
        manifest=manifest,
        workload=workload,
    )


def _layout(manifest: Manifest, workload: Workload) -> str:
    """The machine's name. Raises ReleaseError for a version that none is known for."""
    foreign = workload.cvm_source is not None
    version = f"{CONFIG}: cvm-version {workload.cvm_version}"
    layout = layout_for(workload.cvm_version, foreign=foreign)
    if layout is None:
        raise ReleaseError(
            f"{version}: no machine layout is known for it; the oldest image version that this "
            f"agent boots is {oldest_version()}"
        )
    if manifest.igvm is not None:
        check_size(workload.cpus, workload.memory_mib)
    elif not boots_kernel(workload.cvm_version, foreign=foreign):
        raise LaunchFormatError(
            f"{version}: no launch format is known for it, and {MANIFEST} tells none (igvm); "
            "use an image version that this agent knows, or update the agent"
        )
    return layout


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
        kernel=_boot_file(image_version, Kind.KERNEL, manifest, manifest.kernel_sha256),
        initrd=_boot_file(image_version, Kind.INITRD, manifest, manifest.initrd_sha256),
        root_disk=_artifact(image_version, Kind.ROOT_DISK, None),
        cvm_source=workload.cvm_source,
        igvm=manifest.igvm,
        firmware_sha256=manifest.firmware_sha256,
        snp_measurement=manifest.snp_measurement,
        tdx_measurement=manifest.tdx_measurement,
        demand=Demand(
            gpus=workload.gpus,
            memory_mib=workload.memory_mib,
            vcpus=workload.cpus,
            disk_mib=DISK_MIB,
            writable_volumes=len(workload.volumes),
            tls_challenge=workload.tls_challenge,
        ),
        models=workload.models,
        volumes=workload.volumes,
        inbound_ports=workload.inbound_ports,
        container_names=workload.container_names,
        container_images=workload.container_images,
        env_names=workload.env_names,
        secret_names=workload.secret_names,
        fetches_secrets=workload.fetches_secrets,
        dummy_attestation=workload.dummy_attestation,
        start_period_s=workload.start_period_s,
        shim=workload.shim,
        boot_wait_s=workload.boot_wait_s,
        tls_mode=workload.tls_mode,
        guest_refusals=refusals(manifest.config),
    )


def parse_manifest(data: bytes) -> Manifest:
    """Read the manifest alone; its config is decoded and hashed, not parsed."""
    root = Field(MANIFEST, "", _load_json(data))
    hashes = root.member("hashes")
    version = hashes.optional("version")
    root_hash = hashes.member("root").hexadecimal(32)
    config = _config(root.member("config"))
    config_hash = hashlib.sha256(config).hexdigest()
    igvm = read_igvm(root, config_hash)
    cmdline = _cmdline(root, root_hash, config_hash)
    snp = root.optional("snp_measurement")
    return Manifest(
        image_version=version.text(IMAGE_VERSION, IMAGE_VERSION_RULE) if version else None,
        root_hash=root_hash,
        igvm=igvm,
        kernel_sha256=_boot_hash(root, "kernel"),
        initrd_sha256=_boot_hash(root, "initrd"),
        cmdline=cmdline,
        debug="tinfoil-debug=on" in cmdline.split(" "),
        shape=_shape(root),
        config=config,
        firmware_sha256=_firmware(root.optional("firmware")),
        snp_measurement=snp.hexadecimal(48) if snp else None,
        tdx_measurement=_tdx(root.optional("tdx_measurement")),
    )


def _load_json(data: bytes) -> object:
    if len(data) > MAX_MANIFEST_BYTES:
        raise ReleaseFieldError(MANIFEST, "", f"longer than {MAX_MANIFEST_BYTES} bytes")
    try:
        return load_strict_json(data)
    except StrictJsonError as error:
        raise ReleaseFieldError(MANIFEST, "", f"not JSON: {error}") from None


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


def _boot_hash(root: Field, name: str) -> str | None:
    """Of a file that the machine boots; where one measured file is booted it may be absent."""
    hashes = root.member("hashes")
    found = hashes.optional(name) if is_igvm(root) else hashes.member(name)
    return found.hexadecimal(32) if found else None


def _cmdline(root: Field, root_hash: str, config_hash: str) -> str:
    """The command line, whose two hashes are right. One measured file need not have any."""
    measured_apart = is_igvm(root)
    field = root.optional("cmdline") if measured_apart else root.member("cmdline")
    if field is None:
        return ""
    words = cmdline_words(field)
    for name, value, meaning in (
        ("roothash", root_hash, "hashes.root"),
        ("tinfoil-config-hash", config_hash, "the SHA-256 of config"),
    ):
        check_word(field, words, name, value, meaning=meaning, needed=not measured_apart)
    return field.text()


def _shape(root: Field) -> Shape | None:
    """What the launch was measured with; one measured file fits every shape."""
    field = root.optional("vm_shape") if is_igvm(root) else root.member("vm_shape")
    if field is None:
        return None
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
        raise FirmwareKindError(
            kind.document, kind.path, "must be ovmf: no other firmware is known to this agent"
        )
    snp.member("version").text(IMAGE_VERSION, IMAGE_VERSION_RULE)
    return snp.member("sha256").hexadecimal(32)


def _tdx(field: Field | None) -> dict[str, str] | None:
    if field is None:
        return None
    return {name: field.member(name).hexadecimal(48) for name in ("rtmr1", "rtmr2")}


def _check_shape(shape: Shape, workload: Workload) -> None:
    disks = disks_of(
        workload.cvm_version,
        models=len(workload.models),
        volumes=len(workload.volumes),
        foreign=workload.cvm_source is not None,
    )
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


def _boot_file(
    image_version: str, kind: Kind, manifest: Manifest, sha256: str | None
) -> Artifact | None:
    return None if manifest.igvm is not None else _artifact(image_version, kind, sha256)


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
