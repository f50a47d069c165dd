"""An OCI image of one static program, FROM scratch. Standard library only.

The same program gives the same bytes, and so the same digest. Format: OCI image specification 1.1.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

_TYPE = "application/vnd.oci.image"


def write_image(program: Path, layout: Path) -> str:
    """Write the OCI layout anew, and return the image's digest. The program is its entrypoint."""
    shutil.rmtree(layout, ignore_errors=True)
    (layout / "blobs" / "sha256").mkdir(parents=True)
    plain = _layer(program)
    packed = gzip.compress(plain, mtime=0)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "User": "65532:65532"},
        "rootfs": {"type": "layers", "diff_ids": [_digest(plain)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _put(layout, json.dumps(config).encode(), "config.v1+json"),
        "layers": [_put(layout, packed, "layer.v1.tar+gzip")],
    }
    listed = _put(layout, json.dumps(manifest).encode(), "manifest.v1+json")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return str(listed["digest"])


def _layer(program: Path) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo(program.name)
        member.mode, member.size = 0o755, program.stat().st_size
        with program.open("rb") as file:
            tar.addfile(member, file)
    return out.getvalue()


def _put(layout: Path, data: bytes, kind: str) -> dict[str, object]:
    digest = _digest(data)
    (layout / "blobs" / "sha256" / digest.removeprefix("sha256:")).write_bytes(data)
    return {"mediaType": f"{_TYPE}.{kind}", "digest": digest, "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
