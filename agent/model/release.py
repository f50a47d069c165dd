"""A release as the rest of the agent needs it: what to boot, with which shape, fully checked."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.model.igvm import Igvm
from agent.model.resources import Demand
from agent.model.shim import ShimRules

SELF_SIGNED = "self-signed"  # a guest's tls-mode: it asks nobody for a certificate


PUBLIC_IMAGE = "tinfoilsh/cvmimage"  # whose guests they are where a config names no other


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an image. `sha256` is None for the root disk: its verity root speaks for it."""

    name: str
    sha256: str | None


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable tag. `digest`: SHA-256 of the manifest's bytes; `config`: byte for byte.

    `env_names` and `secret_names` are the names whose values the deployment must supply;
    `fetches_secrets`: the guest fetches those secrets that it is not given. `boot_wait_s`: the
    longest that the boot waits for a container to be healthy. `tls_mode`: where the guest's
    certificate comes from; anything but `self-signed` is a public one. `igvm`: one measured
    file is launched in place of firmware, kernel, initrd and command line, which are absent then.
    `dummy_attestation`: the guest is told to give no evidence. `cvm_source`: whose image it is, if
    not the public one's. `container_images` are those of `container_names`, in order.
    `guest_refusals`: what of the config the guest will surely refuse; the host does not.
    """

    repo: str
    tag: str
    digest: str
    cvm_version: str
    layout: str
    cmdline: str
    debug: bool
    config: bytes
    root_hash: str
    kernel: Artifact | None
    initrd: Artifact | None
    root_disk: Artifact
    cvm_source: str | None = None
    igvm: Igvm | None = None
    firmware_sha256: str | None = None
    snp_measurement: str | None = None
    tdx_measurement: dict[str, str] | None = None
    demand: Demand
    models: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    inbound_ports: tuple[int, ...] = ()
    container_names: tuple[str, ...] = ()
    container_images: tuple[str, ...] = ()
    env_names: tuple[str, ...] = ()
    secret_names: tuple[str, ...] = ()
    fetches_secrets: bool = False
    dummy_attestation: bool = False
    start_period_s: float = 0.0
    shim: ShimRules = ShimRules()
    boot_wait_s: float = 0.0
    tls_mode: str = SELF_SIGNED
    guest_refusals: tuple[str, ...] = ()


class LocalImage(msgspec.Struct, frozen=True, kw_only=True):
    """Artifacts of a release on this host, verified."""

    kernel: Path
    initrd: Path
    root_disk: Path
    firmware: Path | None = None
    models: tuple[Path, ...] = ()
