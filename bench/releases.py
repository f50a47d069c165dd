"""The bench's releases: two tags of the reference guest that differ in one variable."""

from __future__ import annotations

import asyncio
import shutil
import sys

import yaml

from agent.config import ReleasesConfig
from agent.model.release import LocalImage, Release
from agent.releases.store import open_releases
from bench.daemon import BenchError
from bench.place import GUEST, REPO, ROOT, Place

TAGS = ("v1.0.0", "v1.1.0")
_DIGEST = "0123456789abcdef" * 4


def _config_of(tag: str) -> dict[str, object]:
    """The tinfoil-config.yml of one release."""
    return {
        "cvm-version": "0.12.0",
        "cpus": 1,
        "memory": 256,
        "cvm-network": {"inbound-ports": [8080]},
        "containers": [
            {
                "name": "bench",
                "image": f"registry.example/bench@sha256:{_DIGEST}",
                "env": [{"MESSAGE": tag}],
            }
        ],
        "shim": {
            "upstream-port": 8080,
            "paths": ["/*", "/health"],
            "tls-mode": "self-signed",
        },
    }


async def make_releases(place: Place) -> None:
    """As an operator would, by the command line. A changed image or config begins anew."""
    configs = {tag: yaml.safe_dump(_config_of(tag), sort_keys=False) for tag in TAGS}
    made_from = "\n".join([(GUEST / "image.json").read_text(), *configs.values()])
    stamp = place.source / "made-from"
    if stamp.exists() and stamp.read_text() == made_from:
        return
    shutil.rmtree(place.source, ignore_errors=True)
    place.source.mkdir(parents=True)
    for tag, config in configs.items():
        path = place.source / f"{tag}.yml"
        path.write_text(config)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agent", "release", "build", "--config", str(path)),
            *("--image", str(GUEST), "--repo", REPO, "--tag", tag, "--out", str(place.source)),
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        if process.returncode != 0:
            raise BenchError(f"release build {tag}: {output.decode()}")
    stamp.write_text(made_from)


async def local_release(place: Place, tag: str) -> tuple[Release, LocalImage]:
    """The release and its verified files, in a cache apart from the agent's."""
    config = ReleasesConfig(source=str(place.source), cache_max_gib=2)
    store = open_releases(config, state_dir=place.state / "bare", firmware_dir=place.state)
    try:
        release = await store.resolve(REPO, tag)
        return release, await store.fetch(release)
    finally:
        await store.close()
