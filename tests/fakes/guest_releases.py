"""Releases of the reference guest, each a tag that behaves in its own way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.releases.build import build_release, read_image

CHECKOUT = Path(__file__).resolve().parent.parent.parent
REPO = "hello"
_DIGEST = "0123456789abcdef" * 4


def config_of(
    behaviour: Mapping[str, str] | None = None,
    *,
    variables: tuple[str, ...] = (),
    secrets: tuple[str, ...] = (),
    containers: tuple[str, ...] = ("web",),
    checked: tuple[str, ...] | None = None,
    start_period: str = "3s",
    memory_mib: int = 256,
    cpus: int = 1,
    gpus: int = 0,
) -> bytes:
    """A tinfoil-config.yml. `variables` and `secrets` are names to be supplied.

    `checked`: which containers have a health check, for which the boot waits; None: each.
    """
    fixed = dict(behaviour or {})
    env: list[Any] = [*({name: value} for name, value in fixed.items()), *variables]
    health = {
        "test": ["CMD", "true"],
        "interval": "1s",
        "timeout": "1s",
        "start_period": start_period,
        "retries": 1,
    }
    rows = [
        {
            "name": name,
            "image": f"registry.example/{name}@sha256:{_DIGEST}",
            "env": env,
            "secrets": list(secrets),
            **({"healthcheck": health} if checked is None or name in checked else {}),
        }
        for name in containers
    ]
    document = {
        "cvm-version": "0.12.0",
        "cpus": cpus,
        "memory": memory_mib,
        "gpus": gpus,
        "cvm-network": {"inbound-ports": [8080]},
        "containers": rows,
        "shim": {
            "upstream-port": 8080,
            "paths": ["/*", "/health"],
            "tls-mode": "self-signed",
        },
    }
    return json.dumps(document, indent=1).encode()  # which is YAML too, without aliases


def guest_image() -> Path:
    """The reference guest's image.json, built if it is not there yet."""
    manifest = CHECKOUT / ".cache" / "guest" / "image.json"
    if not manifest.exists():
        subprocess.run([CHECKOUT / "scripts" / "build-guest"], check=True)
    return manifest


def guest_firmware() -> Path:
    """An OVMF that can be measured, fetched if it is not there yet."""
    record = CHECKOUT / ".cache" / "firmware" / "firmware.json"
    if not record.exists():
        subprocess.run([sys.executable, CHECKOUT / "scripts" / "fetch-firmware"], check=True)
    return record.with_name(json.loads(record.read_text())["file"])


def make_releases(
    out: Path, configs: Mapping[str, bytes], image: Path, firmware: Path | None = None
) -> None:
    """Put a release of each tag under the source directory `out`."""
    read = read_image(image)
    for tag, config in configs.items():
        build_release(config=config, image=read, repo=REPO, tag=tag, out=out, firmware=firmware)
