"""`scripts/fetch-firmware` with a package client that serves what the test put there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.tiny_firmware import tiny_firmware

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch-firmware"
FIT, UNFIT = tiny_firmware(), tiny_firmware(kernel_hashes=False)
# A package is its firmware. The system's suite has an unfit one, a newer suite the one in $NEWER.
APT_GET = """#!/bin/sh
echo "$*" >>"$CALLS"
list=
for word; do case $word in Dir::Etc::sourcelist=*) list=${word#*=} ;; esac; package=$word; done
case "$*" in
*indextargets*)
  echo "http://third.example/apt $CODENAME contrib"
  echo "http://mirror.example/pool $CODENAME main"
  echo "http://mirror.example/security $CODENAME-security main" ;;
*update) grep -Eq "mirror.example/pool (testing|devel) main" "$list" ;;
*download*)
  if [ -n "$list" ]; then [ "$package" = ovmf-generic ] && cp "$NEWER" ovmf-generic_2_all.deb
  else [ "$package" = ovmf ] && cp "$OLDER" ovmf_1_all.deb; fi ;;
esac
"""
DPKG_DEB = '#!/bin/sh\nmkdir -p "$3/usr/share/ovmf" && cp "$2" "$3/usr/share/ovmf/OVMF.fd"\n'


@pytest.fixture
def world(tmp_path: Path) -> dict[str, str]:
    """The environment of a run: no network, no real package client."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    for name, data in (("newer", FIT), ("older", UNFIT)):
        (tmp_path / name).write_bytes(data)
    told = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    return os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CODENAME": told[1] if told else "unstable",
        "NEWER": str(tmp_path / "newer"),
        "OLDER": str(tmp_path / "older"),
        "CALLS": str(tmp_path / "calls"),
    }


def fetch(
    tmp_path: Path, world: dict[str, str], *more: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    """What it said, and its record."""
    out = tmp_path / "out"
    argv = [sys.executable, str(SCRIPT), "--out", str(out), *more]
    if "--installed" not in more:
        argv += ["--installed", str(tmp_path / "none")]
    done = subprocess.run(argv, env=world, capture_output=True, text=True, check=False)
    record = out / "firmware.json"
    return done, json.loads(record.read_text()) if record.exists() else {}


def test_a_newer_suite_is_asked_where_the_systems_own_does_not_fit(
    tmp_path: Path, world: dict[str, str]
) -> None:
    done, record = fetch(tmp_path, world)
    assert done.returncode == 0, done.stderr
    assert record["sha256"] == hashlib.sha256(FIT).hexdigest()
    assert (tmp_path / "out" / record["file"]).read_bytes() == FIT
    assert record["source"].startswith("ovmf-generic_2_all of ")
    calls = (tmp_path / "calls").read_text().splitlines()
    # Nothing of the system's is written: lists, cache and sources of its own.
    updates = [call for call in calls if call.endswith("update")]
    assert updates
    for call in updates:
        for setting in ("Dir::Etc::sourcelist", "Dir::State::lists", "Dir::Cache"):
            assert f"{setting}={tmp_path}/out/" in call
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [".lock", "firmware.json", record["file"]]
    )


def test_what_is_there_is_kept_until_it_is_damaged(tmp_path: Path, world: dict[str, str]) -> None:
    fetch(tmp_path, world)
    (tmp_path / "newer").write_bytes(tiny_firmware(filling=b"\x91"))
    (tmp_path / "calls").unlink()
    done, record = fetch(tmp_path, world)
    assert (done.returncode, "reused" in done.stdout) == (0, True)
    assert not (tmp_path / "calls").exists()

    (tmp_path / "out" / record["file"]).write_bytes(b"damaged")
    _, anew = fetch(tmp_path, world)
    assert anew["sha256"] != record["sha256"]


def test_the_installed_one_is_taken_where_it_fits(tmp_path: Path, world: dict[str, str]) -> None:
    own = tmp_path / "own.fd"
    own.write_bytes(FIT)
    done, record = fetch(tmp_path, world, "--installed", str(own))
    assert done.returncode == 0, done.stderr
    assert record["source"] == f"{own}, installed"
    assert not (tmp_path / "calls").exists()
    assert own.exists()


def test_where_nothing_fits_it_says_what_to_do(tmp_path: Path, world: dict[str, str]) -> None:
    (tmp_path / "newer").write_bytes(UNFIT)
    done, record = fetch(tmp_path, world)
    assert (done.returncode, record) == (1, {})
    assert "put one into qemu.firmware_dir yourself" in done.stderr
