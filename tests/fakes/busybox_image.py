"""An image whose programs are not ours: Debian's busybox, put together by buildah."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.fakes.release_parts import tool

_APPLETS = ("sh", "cat", "dd", "env", "false", "httpd", "id", "mkdir", "sleep", "true", "wget")


def busybox_image(directory: Path) -> tuple[Path, str]:
    """The OCI layout that buildah wrote, and the image's digest in it."""
    programs = directory / "bin"
    programs.mkdir(parents=True)
    (programs / "busybox").write_bytes(Path(tool("busybox")).resolve().read_bytes())
    (programs / "busybox").chmod(0o755)
    for applet in _APPLETS:
        (programs / applet).symlink_to("busybox")
    layout = directory / "oci"
    container = _buildah(directory, "from", "scratch")
    _buildah(directory, "add", container, str(programs), "/bin")
    _buildah(
        directory,
        *("config", "--entrypoint", '["/bin/sh", "-c"]', "--cmd", "exit 9"),
        *("--env", "PATH=/bin", "--env", "FROM_IMAGE=yes", container),
    )
    _buildah(
        directory,
        *("commit", "--quiet", "--format", "oci", "--timestamp", "0", container),
        f"oci:{layout}:latest",
    )
    (manifest,) = json.loads((layout / "index.json").read_text())["manifests"]
    return layout, str(manifest["digest"])


def _buildah(directory: Path, *arguments: str) -> str:
    """In a storage of its own, without mounts, whatever the host is set up for."""
    storage = ("--root", str(directory / "storage"), "--runroot", str(directory / "run"))
    result = subprocess.run(
        [tool("buildah"), *storage, "--storage-driver", "vfs", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
