"""OCI image layouts, as buildah and skopeo write them (see tests/qemu for theirs)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, data: bytes = b"", mode: int = 0o644, **attributes: Any) -> Member:
    return _member(name, tarfile.REGTYPE, mode, data, attributes)


def directory(name: str, mode: int = 0o755, **attributes: Any) -> Member:
    return _member(name, tarfile.DIRTYPE, mode, b"", attributes)


def symlink(name: str, target: str) -> Member:
    return _member(name, tarfile.SYMTYPE, 0o777, b"", {"linkname": target})


def hard_link(name: str, target: str) -> Member:
    return _member(name, tarfile.LNKTYPE, 0o644, b"", {"linkname": target})


def device(name: str) -> Member:
    return _member(name, tarfile.CHRTYPE, 0o666, b"", {"devmajor": 1, "devminor": 3})


def _member(
    name: str, kind: bytes, mode: int, data: bytes, attributes: Mapping[str, Any]
) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = kind, mode, len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def layer(*members: Member) -> bytes:
    """A layer's tar archive, not packed."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_layout(
    place: Path,
    layers: Iterable[bytes],
    *,
    config: Mapping[str, Any] | None = None,
    platform: tuple[str, str] = ("linux", "amd64"),
    spoil: Mapping[str, Any] | None = None,
) -> str:
    """Write an image, and return its manifest's digest. `spoil` changes the manifest."""
    (place / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    plain = list(layers)
    packed = [gzip.compress(data, mtime=0) for data in plain]
    told = {
        "os": platform[0],
        "architecture": platform[1],
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in plain]},
    }
    described = descriptor(place, json.dumps(told).encode(), "image.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "config": described,
        "layers": [descriptor(place, data, "image.layer.v1.tar+gzip") for data in packed],
    }
    manifest |= spoil or {}
    of = descriptor(place, json.dumps(manifest).encode(), "image.manifest.v1+json")
    (place / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [of]}))
    return str(of["digest"])


def descriptor(place: Path, data: bytes, kind: str) -> dict[str, Any]:
    """Put a blob, and say what it is."""
    digest = digest_of(data)
    blob(place, digest).write_bytes(data)
    return {
        "mediaType": f"application/vnd.oci.{kind}",
        "digest": digest,
        "size": len(data),
    }


def blob(place: Path, digest: str) -> Path:
    return place / "blobs" / "sha256" / digest.removeprefix("sha256:")


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
