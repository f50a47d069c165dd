"""The releases of the story, made by `enclave-agent release build` as an operator would.

Their hello is a container that runs; `scripts/build-guest` leaves its image beside the guest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from scripts.story.agent_process import ENCLAVE_AGENT
from scripts.story.place import GUEST, REPO, Place

CVM_VERSION, ALTERED_CVM = "0.12.0", "0.12.1"

Texts = dict[tuple[str, str], str]  # the tinfoil-config.yml of each repo and tag

RELEASES: dict[str, dict[str, str]] = {
    "v1.0.0": {},
    "v1.1.0": {},
    "v1.2.0": {"HEALTHY_AFTER_S": "never"},  # broken on purpose
    "v1.3.0": {"HEALTHY_AFTER_S": "5"},  # slow to get healthy
}


# Of the story about GPUs: how many the guests of each repo have.
BOARD = "board"
GPUS = {REPO: 1, BOARD: 8}


def config_of(tag: str, behaviour: dict[str, str], gpus: int = 0) -> dict[str, object]:
    """The tinfoil-config.yml of one release: a container that runs, of the guest's own image."""
    digest = json.loads((GUEST / "image.json").read_text())["hello"]
    fixed = {"MESSAGE": "hello", "VERSION": tag} | behaviour
    return {
        "cvm-version": CVM_VERSION,
        "cpus": 1,
        "memory": 256,
        "gpus": gpus,
        "cvm-network": {"inbound-ports": [8080]},
        "containers": [
            {
                "name": "hello",
                "image": f"localhost/hello@{digest}",
                "env": [*({name: value} for name, value in fixed.items()), "COLOUR"],
                "ports": ["8080"],
                "healthcheck": {
                    "test": ["CMD", "/hello", "check"],
                    "interval": "1s",
                    "timeout": "5s",
                    # at the very end of it v1.3.0 gets healthy; the others need less
                    "start_period": "6s" if behaviour.get("HEALTHY_AFTER_S") == "5" else "2s",
                },
            }
        ],
        "shim": {
            "upstream-port": 8080,
            "paths": ["/*", "/health"],
            "tls-mode": "self-signed",
        },
    }


ALTERED = "v1.4.0"


async def make_releases(place: Place) -> None:
    """Make the story's if they are not there."""
    texts = {
        (REPO, tag): yaml.safe_dump(config_of(tag, behaviour), sort_keys=False)
        for tag, behaviour in RELEASES.items()
    }
    made_of = _made_of(place, texts)
    if _is_made(place, made_of):
        return
    await _make(place, texts)
    with _altered_image(place) as image_dir:
        text = texts[REPO, "v1.1.0"].replace(
            f"cvm-version: {CVM_VERSION}", f"cvm-version: {ALTERED_CVM}"
        )
        await _build(place, (REPO, ALTERED), text, image_dir)
    _alter(place)
    _stamp(place).write_text(made_of)


async def make_gpu_releases(place: Place) -> None:
    """Make those of the story about GPUs if they are not there."""
    texts = {
        (repo, tag): yaml.safe_dump(config_of(tag, {}, gpus), sort_keys=False)
        for repo, gpus in GPUS.items()
        for tag in ("v1.0.0", "v1.1.0")
    }
    made_of = _made_of(place, texts)
    if not _is_made(place, made_of):
        await _make(place, texts)
        _stamp(place).write_text(made_of)


def _stamp(place: Place) -> Path:
    return place.source / "made-of"


def _made_of(place: Place, texts: Texts) -> str:
    image = (GUEST / "image.json").read_text()
    return hashlib.sha256(
        "".join([image, str(place.firmware), *texts.values()]).encode()
    ).hexdigest()


def _is_made(place: Place, made_of: str) -> bool:
    """A tag never changes: other contents begin a new source."""
    return _stamp(place).exists() and _stamp(place).read_text() == made_of


async def _make(place: Place, texts: Texts) -> None:
    await asyncio.to_thread(shutil.rmtree, place.source, ignore_errors=True)
    place.source.mkdir(parents=True)
    for of, text in texts.items():
        await _build(place, of, text, GUEST)


async def _build(place: Place, of: tuple[str, str], text: str, image: Path) -> None:
    repo, tag = of
    path = place.source / f"{repo}-{tag}.yml"
    path.write_text(text)
    firmware = ("--firmware", str(place.firmware)) if place.firmware else ()
    process = await asyncio.create_subprocess_exec(
        *ENCLAVE_AGENT,
        *("release", "build", "--config", str(path), "--image", str(image)),
        *("--images", str(GUEST / "hello")),
        *("--repo", repo, "--tag", tag, "--out", str(place.source), *firmware),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"release build {repo} {tag}: {output.decode()}")


@contextlib.contextmanager
def _altered_image(place: Place) -> Iterator[Path]:
    """The same image by another version, with an initrd of its own: padded, as a kernel allows."""
    told = json.loads((GUEST / "image.json").read_text())
    directory = place.state / "image"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name in told["files"].values():
        shutil.copy(GUEST / name, directory / name)
    initrd = directory / told["files"]["initrd"]
    initrd.write_bytes(initrd.read_bytes() + bytes(1024))
    told["initrd"] = hashlib.sha256(initrd.read_bytes()).hexdigest()
    told["version"] = f"v{ALTERED_CVM}"
    (directory / "image.json").write_text(json.dumps(told))
    yield directory
    shutil.rmtree(directory)


def _alter(place: Place) -> None:
    """After its release somebody writes into the image: the last byte of its initrd."""
    (initrd,) = (place.source / "images").glob(f"v{ALTERED_CVM}-*.initrd")
    text = bytearray(initrd.read_bytes())
    text[-1] ^= 1
    initrd.write_bytes(text)


def put_swap(place: Place) -> None:
    """A QEMU that boots another initrd than the one that was checked and given to it."""
    told = json.loads((GUEST / "image.json").read_text())
    initrd = GUEST / told["files"]["initrd"]
    place.swapped_initrd.write_bytes(initrd.read_bytes() + bytes(512))
    place.swapping_qemu.write_text(
        f'#!/bin/sh\nexec qemu-system-x86_64 "$@" -initrd {place.swapped_initrd}\n'
    )
    place.swapping_qemu.chmod(0o755)
