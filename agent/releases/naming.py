"""Where a source keeps what: the one place that knows paths and file names.

::

    <repo>/<tag>/tinfoil-deployment.json
    <repo>/<tag>/tinfoil-deployment.json.sigstore.json   its signature, where it has one
    <repo>/<tag>/ or <repo>/images/ or images/   <image version>.vmlinuz .initrd .raw

The public publisher of images writes `tinfoil-inference-v<version>` before the same suffixes; a
mirror of it works unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

MANIFEST = "tinfoil-deployment.json"
SIGNATURE = f"{MANIFEST}.sigstore.json"
CONFIG = "tinfoil-config.yml"
IMAGES = "images"

# One path component, and no option to a tool either.
IMAGE_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
IMAGE_VERSION_RULE = (
    "must be 1 to 100 of letters, digits, '.', '_', '+' and '-', beginning with a letter or digit"
)


class Kind(StrEnum):
    """The artifacts of an image; the value is the file's suffix."""

    KERNEL = "vmlinuz"
    INITRD = "initrd"
    ROOT_DISK = "raw"


def artifact_name(image_version: str, kind: Kind) -> str:
    """The file name of an artifact."""
    return f"{image_version}.{kind}"


def public_name(name: str) -> str:
    """What the public publisher calls the artifact that has this name here."""
    version, _, suffix = name.rpartition(".")
    return f"tinfoil-inference-v{version.removeprefix('v')}.{suffix}"


def manifest_path(repo: str, tag: str) -> str:
    """The manifest's path under the source."""
    return f"{repo}/{tag}/{MANIFEST}"


def signature_path(repo: str, tag: str) -> str:
    """The path of the manifest's Sigstore bundle under the source."""
    return f"{repo}/{tag}/{SIGNATURE}"


def artifact_paths(repo: str, tag: str, name: str) -> Iterator[str]:
    """Every path under the source where an artifact of that name may lie, nearest first."""
    public = public_name(name)
    for directory in (f"{repo}/{tag}", f"{repo}/{IMAGES}", IMAGES):
        yield f"{directory}/{name}"
        yield f"{directory}/{public}"
