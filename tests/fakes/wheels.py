"""Wheels: of what the agent depends on (kept in .cache), and of the agent in two versions."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "agent")


def wheelhouse() -> Path:
    """A directory of wheels from which the agent can be built and installed without network."""
    project = (CHECKOUT / "pyproject.toml").read_text()
    depends = re.findall(r'"([^"]+)"', project.split("\ndependencies = [")[1].split("]")[0])
    wanted = ["setuptools>=70.1", "wheel", *depends]
    mark = hashlib.sha256("\n".join([*wanted, sys.version]).encode()).hexdigest()[:12]
    house = CHECKOUT / ".cache" / "wheelhouse" / mark
    if not (house / ".complete").exists():
        subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "--quiet", "-w", house, *wanted], check=True
        )
        (house / ".complete").touch()
    return house


def earlier_tree(where: Path) -> Path:
    """The sources of the last commit; where this is no checkout of git, those that are here."""
    where.mkdir(parents=True)
    archive = where / "archive.tar"
    told = subprocess.run(
        ["git", "-C", CHECKOUT, "archive", "-o", archive, "HEAD", *SOURCES], check=False
    )
    if told.returncode != 0:
        return present_tree(where / "tree")
    tree = where / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-C", tree, "-xf", archive], check=True)
    return tree


def present_tree(where: Path) -> Path:
    """A copy of the sources as they are here."""
    where.mkdir(parents=True)
    packed = subprocess.run(
        ["tar", "-C", CHECKOUT, "--exclude=__pycache__", "-cf", "-", *SOURCES],
        capture_output=True,
        check=True,
    )
    subprocess.run(["tar", "-C", where, "-xf", "-"], input=packed.stdout, check=True)
    return where


def wheel_of(tree: Path, version: str, out: Path) -> Path:
    """The tree's wheel, under this version."""
    project = tree / "pyproject.toml"
    text = re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text())
    project.write_text(text)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
            *("--find-links", wheelhouse(), "-w", out, tree),
        ],
        check=True,
    )
    (found,) = out.glob(f"enclave_agent-{version}-*.whl")
    return found
