"""Packages of suites that this system does not use, by its own package client and mirror.

Lists, cache and settings are private: nothing of the system changes, and no root is needed. The
client verifies the archive's signatures.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Distribution:
    """Which suites to ask beyond the system's own, and who signs them."""

    keyring: str
    newer: tuple[str, ...]


DISTRIBUTIONS = {
    "debian": Distribution(
        "/usr/share/keyrings/debian-archive-keyring.gpg", ("stable", "testing", "unstable")
    ),
    "ubuntu": Distribution("/usr/share/keyrings/ubuntu-archive-keyring.gpg", ("devel",)),
}


def distribution_of(system: Mapping[str, str]) -> Distribution | None:
    """Of what `os_release` says; None for one that is not known."""
    words = system["family"].split()
    return next((DISTRIBUTIONS[name] for name in DISTRIBUTIONS if name in words), None)


def os_release() -> dict[str, str]:
    """`family`: the distribution and what it is like; `codename`: its suite."""
    text = Path("/etc/os-release").read_text()
    told = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.M))
    return {
        "family": f"{told.get('ID', '')} {told.get('ID_LIKE', '')}",
        "codename": told.get("VERSION_CODENAME", "unstable"),
    }


def mirrors(codename: str) -> list[str]:
    """Where this system's own packages come from, as its sources say."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    rows = [line.split() for line in told.splitlines()]
    found = [row[0] for row in rows if len(row) == 3 and row[1:] == [codename, "main"]]
    return list(dict.fromkeys(found))


def private_options(place: Path, source: str) -> list[str]:
    """Sources, lists and cache in a directory of ours; everything else (a proxy) as it is."""
    for directory in ("lists/partial", "cache/archives/partial"):
        (place / directory).mkdir(parents=True)
    (place / "sources.list").write_text(source)
    settings = {
        "Dir::Etc::sourcelist": place / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::preferencesparts": "-",
        "Dir::State::lists": place / "lists",
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def run(argv: list[str], cwd: Path | None = None) -> bool:
    """Run a tool quietly; whether it did what it was told."""
    return subprocess.run(argv, cwd=cwd, capture_output=True, check=False).returncode == 0
