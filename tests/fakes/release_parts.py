"""Material of releases: configs, manifests and disks that a real `veritysetup format` made."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.releases.build import Built, Image, build_release
from agent.releases.naming import Kind

SECTOR = 512
MIB = 1 << 20

CONFIG = b"""\
cvm-version: 0.11.0
cpus: 2
memory: 512
containers:
  - name: web
    image: "example.invalid/web@sha256:ZEROS"
    env: [REGION, {COLOUR: "red"}]
    secrets: [API_KEY]
    healthcheck: {test: ["CMD", "true"], start_period: 30s}
shim:
  upstream-port: 8080
  paths: [/health, /v1/*]
""".replace(b"ZEROS", b"0" * 64)


def tool(name: str) -> str:
    """Path of a program; administrators' directories are searched too."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        pytest.fail(f"{name} is not installed", pytrace=False)
    return found


@dataclass(frozen=True)
class Disk:
    """A disk image and where its parts lie, in bytes."""

    path: Path
    root_hash: str
    data_offset: int
    data_size: int
    tree_offset: int
    tree_size: int


def make_disk(path: Path, data: bytes, salt: str = "5c1e9a4f") -> Disk:
    """GPT, partition 1 with the data, partition 2 with the tree that veritysetup computed."""
    assert len(data) % 4096 == 0
    plain, tree = path.with_suffix(".data"), path.with_suffix(".tree")
    plain.write_bytes(data)
    printed = subprocess.run(
        [tool("veritysetup"), "format", f"--salt={salt}", str(plain), str(tree)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    match = re.search(r"^Root hash:\s*([0-9a-f]{64})$", printed, re.M)
    assert match
    tree_bytes = tree.read_bytes()
    starts = [MIB, MIB + len(data) + -len(data) % MIB]
    size = starts[1] + len(tree_bytes) + -len(tree_bytes) % MIB + MIB
    with path.open("wb") as disk:
        disk.truncate(size)
    table = "label: gpt\n" + "".join(
        f"start={start // SECTOR}, size={length // SECTOR}\n"
        for start, length in zip(starts, (len(data), len(tree_bytes)), strict=True)
    )
    subprocess.run(
        [tool("sfdisk"), "--quiet", "--no-reread", "--no-tell-kernel", str(path)],
        input=table, check=True, capture_output=True, text=True,
    )  # fmt: skip
    with path.open("r+b") as disk:
        for start, content in zip(starts, (data, tree_bytes), strict=True):
            disk.seek(start)
            disk.write(content)
    plain.unlink()
    tree.unlink()
    return Disk(path, match[1], starts[0], len(data), starts[1], len(tree_bytes))


def make_image(directory: Path, version: str = "v0.11.0", *, seed: bytes = b"a") -> Image:
    """A small image with its `image.json`, as the build script of the guest leaves it."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {
        "kernel": hashlib.shake_128(b"kernel" + seed).digest(3 * MIB),
        "initrd": hashlib.shake_128(b"initrd" + seed).digest(MIB + 17),
    }
    names = {"kernel": "guest.vmlinuz", "initrd": "guest.initrd", "raw": "guest.raw"}
    for kind, data in content.items():
        (directory / names[kind]).write_bytes(data)
    disk = make_disk(directory / names["raw"], hashlib.shake_128(b"disk" + seed).digest(MIB))
    image: dict[str, Any] = {"version": version, "root": disk.root_hash, "files": names}
    image |= {kind: hashlib.sha256(data).hexdigest() for kind, data in content.items()}
    (directory / "image.json").write_text(json.dumps(image))
    return Image(
        version=version,
        root_hash=disk.root_hash,
        sha256={Kind.KERNEL: image["kernel"], Kind.INITRD: image["initrd"], Kind.ROOT_DISK: None},
        files={
            Kind.KERNEL: directory / names["kernel"],
            Kind.INITRD: directory / names["initrd"],
            Kind.ROOT_DISK: directory / names["raw"],
        },
    )


def publish(
    out: Path, image: Image, repo: str = "hello", tag: str = "v1.0.0", config: bytes = CONFIG
) -> Built:
    """A release in a source directory."""
    return build_release(config=config, image=image, repo=repo, tag=tag, out=out)


def manifest_members(config: bytes = CONFIG, **shape: int) -> dict[str, Any]:
    """A whole manifest, right in every field, for a test to spoil."""
    root = "ab" * 32
    digest = hashlib.sha256(config).hexdigest()
    return {
        "snp_measurement": "1a" * 48,
        "tdx_measurement": {"rtmr1": "2b" * 48, "rtmr2": "3c" * 48},
        "firmware": {"sev_snp": {"type": "ovmf", "version": "v0.0.4", "sha256": "4d" * 32}},
        "vm_shape": {"cpus": 2, "memory_mb": 512, "gpus": 0, "disks": 3} | shape,
        "cmdline": "readonly=on pci=realloc,nocrs modprobe.blacklist=nouveau nouveau.modeset=0 "
        f"root=/dev/mapper/root roothash={root} tinfoil-config-hash={digest}",
        "hashes": {"version": "v0.11.0", "root": root, "initrd": "5e" * 32, "kernel": "6f" * 32},
        "config": base64.b64encode(config).decode(),
    }
