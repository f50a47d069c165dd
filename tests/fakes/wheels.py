"""Wheels: of what the agent depends on (kept in .cache), and of the agent in two versions."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "agent")


def wheelhouse() -> Path:
    """A directory of wheels from which both versions are built and installed without network."""
    projects = [(CHECKOUT / "pyproject.toml").read_text()]
    if (commit := _earlier_commit()) is not None:
        projects.append(_git("show", f"{commit}:pyproject.toml").decode())
    depends = sorted({one for project in projects for one in _dependencies(project)})
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
    """The sources of an earlier commit; where this is no checkout of git, those that are here."""
    where.mkdir(parents=True)
    commit = _earlier_commit()
    if commit is None:
        return present_tree(where / "tree")
    tree = where / "tree"
    tree.mkdir()
    packed = _git("archive", commit, *SOURCES)
    subprocess.run(["tar", "-C", tree, "-xf", "-"], input=packed, check=True)
    return tree


def _earlier_commit() -> str | None:
    """The one before the last; the last where there is no other."""
    for commit in ("HEAD~1", "HEAD"):
        with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
            return _git("rev-parse", "--verify", "--quiet", commit).decode().strip()
    return None


def _git(*words: str) -> bytes:
    return subprocess.run(
        ["git", "-C", CHECKOUT, *words], check=True, stdout=subprocess.PIPE
    ).stdout


def _dependencies(project: str) -> list[str]:
    return re.findall(r'"([^"]+)"', project.split("\ndependencies = [")[1].split("]")[0])


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
