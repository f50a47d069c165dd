"""Which guest image a release is made with, where nobody names one."""

from __future__ import annotations

import os
from pathlib import Path

from agent.cli.exits import Exit, Failure

VARIABLE = "ENCLAVE_AGENT_GUEST_IMAGE"
_DESCRIPTION = "image.json"


def image_places() -> tuple[Path, ...]:
    """Where one is looked for: a checkout's first, then this user's, then this host's."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        Path(".cache/guest"),
        cache / "enclave-agent" / "guest",
        Path("/var/lib/enclave-agent/guest"),
        Path("/usr/local/share/enclave-agent/guest"),
        Path("/usr/share/enclave-agent/guest"),
    )


def find_image(named: Path | None) -> Path | None:
    """The image.json; of `named`, which must be there, or the first of the usual places."""
    if named is not None:
        return named / _DESCRIPTION if named.is_dir() else named
    candidates = (place / _DESCRIPTION for place in image_places())
    return next((path for path in candidates if path.is_file()), None)


def need_image(named: Path | None) -> Path:
    """The image.json. Raises Failure USAGE with the places where there is none."""
    found = find_image(named)
    if found is None:
        places = ", ".join(str(place) for place in image_places())
        raise Failure(
            Exit.USAGE,
            "no guest image is here: name the directory of one by --image",
            [
                f"looked in {places}",
                "scripts/build-guest --out DIR makes the reference guest's",
                f"{VARIABLE}=DIR names one for good",
            ],
        )
    return found
