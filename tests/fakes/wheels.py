"""Wheels: of what the agent depends on (kept in .cache), and of the agent in two versions."""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "agent")
EXTRAS = ("sigstore", "uvloop")


def wheelhouse() -> Path:
    """A directory of the wheels that are locked: what an installation needs without network."""
    locked = (CHECKOUT / "requirements" / f"{kind}.txt" for kind in ("build", "agent", *EXTRAS))
    files = hashlib.sha256(b"".join(one.read_bytes() for one in locked))
    files.update(sys.version.encode())
    house = CHECKOUT / ".cache" / "wheelhouse" / files.hexdigest()[:12]
    if not (house / ".complete").exists():
        subprocess.run([CHECKOUT / "scripts/wheels", house, *EXTRAS], check=True)
        (house / ".complete").touch()
    return house


def earlier_tree(where: Path) -> Path:
    """The sources of an earlier commit; those that are here where there is none.

    Nor where that one depended on something else: what is locked here would not fit it.
    """
    commit = _earlier_commit()
    needs = (CHECKOUT / "pyproject.toml").read_text()
    if commit is None or _dependencies(needs) != _dependencies(
        _git("show", f"{commit}:pyproject.toml").decode()
    ):
        return present_tree(where)
    where.mkdir(parents=True)
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
    found: list[str] = tomllib.loads(project)["project"]["dependencies"]
    return found


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
            *("--no-build-isolation", "-w", out, tree),
        ],
        check=True,
    )
    (found,) = out.glob(f"enclave_agent-{version}-*.whl")
    return found
