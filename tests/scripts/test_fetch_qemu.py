"""`scripts/fetch-qemu` with a package client that serves what the test put there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.other_suites import distribution_of, os_release

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fetch-qemu"
_DISTRIBUTION = distribution_of(os_release())
NEWEST = _DISTRIBUTION.newer[-1] if _DISTRIBUTION else "unstable"
# The version of a suite is in $SUITES, a line each; a suite that is not there cannot be reached.
APT_GET = """#!/bin/sh
echo "get $*" >>"$CALLS"
for word; do case $word in
  Dir::Etc::sourcelist=*) list=${word#*=} ;;
  Dir::Cache=*) cache=${word#*=} ;;
  APT::Default-Release=*) suite=${word#*=} ;;
esac; done
case "$*" in
*indextargets*) echo "http://mirror.example/pool $CODENAME main" ;;
*update) grep -q "^$suite " "$SUITES" ;;
*install*) sed -n "s/^$suite //p" "$SUITES" >"$cache/archives/qemu.deb" ;;
esac
"""
APT_CACHE = """#!/bin/sh
for word; do case $word in APT::Default-Release=*) suite=${word#*=} ;; esac; done
echo "  Candidate: 1:$(sed -n "s/^$suite //p" "$SUITES")+ds-1"
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/lib64" "$3/usr/bin" "$3/usr/share/doc/qemu"
printf '#!/bin/sh\\necho "QEMU emulator version %s (of a test)"; echo "$@"\\n' "$(cat "$2")" \\
  >"$3/usr/lib64/ld-linux-x86-64.so.2"
chmod 755 "$3/usr/lib64/ld-linux-x86-64.so.2"
"""


@pytest.fixture
def world(tmp_path: Path) -> dict[str, str]:
    """The environment of a run: no network, no real package client."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-deb", DPKG_DEB)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    told = re.search(r"^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text(), re.M)
    return os.environ | {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CODENAME": told[1] if told else "unstable",
        "SUITES": str(tmp_path / "suites"),
        "CALLS": str(tmp_path / "calls"),
    }


def fetch(
    tmp_path: Path, world: dict[str, str], suites: str, *more: str
) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, str]]]:
    """What it said, and its record. A suite a line: its name, the version that it has."""
    named = suites.replace("CODENAME", world["CODENAME"]).replace("NEWEST", NEWEST)
    Path(world["SUITES"]).write_text(named)
    out = tmp_path / "out"
    argv = [sys.executable, str(SCRIPT), "--out", str(out), *more]
    done = subprocess.run(argv, env=world, capture_output=True, text=True, check=False)
    record = out / "qemu.json"
    return done, json.loads(record.read_text()) if record.exists() else {}


BOTH = "CODENAME-backports 10.0.2\nNEWEST 11.1.2\n"


def test_the_nearest_suite_that_is_new_enough_serves_each(
    tmp_path: Path, world: dict[str, str]
) -> None:
    done, record = fetch(tmp_path, world, BOTH)
    assert done.returncode == 0, done.stderr
    assert {tee: found["version"] for tee, found in record.items()} == {
        "snp": "10.0.2",
        "tdx": "11.1.2",
    }
    binary = tmp_path / "out" / record["snp"]["binary"]
    told = subprocess.run([binary, "-machine", "none"], capture_output=True, text=True, check=True)
    assert "version 10.0.2" in told.stdout
    assert told.stdout.splitlines()[1].endswith("-machine none")
    assert not (binary.parent / "root" / "usr" / "share" / "doc").exists()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all("Dir::State::lists=" in call for call in calls if "indextargets" not in call)


def test_what_was_fetched_is_kept(tmp_path: Path, world: dict[str, str]) -> None:
    fetch(tmp_path, world, BOTH)
    (tmp_path / "calls").unlink()
    done, record = fetch(tmp_path, world, "")
    assert (done.returncode, set(record)) == (0, {"snp", "tdx"})
    assert not (tmp_path / "calls").exists()
    (tmp_path / "out" / record["tdx"]["binary"]).unlink()  # one that does not run is fetched anew
    done, record = fetch(tmp_path, world, "NEWEST 11.2.0\n")
    assert done.returncode == 0, done.stderr
    assert (record["snp"]["version"], record["tdx"]["version"]) == ("10.0.2", "11.2.0")


def test_one_new_suite_serves_both(tmp_path: Path, world: dict[str, str]) -> None:
    done, record = fetch(tmp_path, world, "NEWEST 11.2.0\n")
    assert done.returncode == 0, done.stderr
    assert record["snp"] == record["tdx"]


def test_what_cannot_be_reached_or_is_too_old_is_said(
    tmp_path: Path, world: dict[str, str]
) -> None:
    done, record = fetch(tmp_path, world, "CODENAME-backports 10.0.2\n")
    assert done.returncode == 1
    assert set(record) == {"snp"}  # what was found is of use
    assert f"{NEWEST} cannot be reached" in done.stderr
    done, _ = fetch(tmp_path, world, "NEWEST 11.0.0\n")
    assert f"{NEWEST} has QEMU 11.0" in done.stderr
    assert "no suite that can be reached has a QEMU for tdx (>= 11.1)" in done.stderr
