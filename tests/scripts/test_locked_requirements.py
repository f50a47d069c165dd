"""What is installed is what is locked, to the byte; and a release says what that is."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from scripts.sbom import joined
from tests.fakes.wheels import CHECKOUT, EXTRAS, wheelhouse

LOCKS = ("agent", "dev", *EXTRAS)
_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;]+)(?P<rest>.*)$", re.M)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def locked(kind: str) -> dict[str, tuple[Version, set[str]]]:
    """Name → version and hashes."""
    text = (CHECKOUT / "requirements" / f"{kind}.txt").read_text()
    starts = [*_ENTRY.finditer(text)]
    ends = [*(one.start() for one in starts[1:]), len(text)]
    return {
        canonicalize_name(one["name"]): (
            Version(one["version"]),
            set(HASH.findall(text[one.start() : end])),
        )
        for one, end in zip(starts, ends, strict=True)
    }


def wanted(kind: str) -> Iterator[Requirement]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    if kind != "agent":
        lines += project["optional-dependencies"][kind]
    return map(Requirement, lines)


@pytest.mark.parametrize("kind", LOCKS)
def test_what_is_locked_is_what_the_project_asks_for(kind: str) -> None:
    """Red after a change of dependencies until `./scripts/lock` was run."""
    found = locked(kind)
    for need in wanted(kind):
        version, hashes = found[canonicalize_name(need.name)]
        assert need.specifier.contains(version), f"./scripts/lock: {need}, locked {version}"
        assert hashes, need


@pytest.mark.parametrize("kind", LOCKS)
def test_everything_has_a_hash_and_one_version_in_all_files(kind: str) -> None:
    developers = locked("dev")
    for name, (version, hashes) in locked(kind).items():
        assert hashes, name
        assert developers.get(name, (version, hashes)) == (version, hashes)


def test_every_extra_that_may_be_asked_for_is_locked() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) == {"dev", *EXTRAS}
    assert {one.stem for one in (CHECKOUT / "requirements").iterdir()} == {*LOCKS, "build", "lock"}


def test_the_build_backend_is_locked() -> None:
    system = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["build-system"]
    for need in map(Requirement, system["requires"]):
        version, hashes = locked("build")[canonicalize_name(need.name)]
        assert need.specifier.contains(version)
        assert hashes


@pytest.mark.slow
def test_a_wheel_with_one_changed_byte_is_not_installed(tmp_path: Path) -> None:
    house = tmp_path / "house"
    house.mkdir()
    (real,) = wheelhouse().glob("setuptools-*.whl")
    shutil.copy(real, house)
    venv.create(tmp_path / "venv", with_pip=False)
    words = (
        *(sys.executable, "-m", "pip", "--python", tmp_path / "venv/bin/python", "install"),
        *("--no-index", "--find-links", house, "--require-hashes", "--only-binary", ":all:"),
        *("-r", CHECKOUT / "requirements" / "build.txt"),
    )
    wheel = house / real.name
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "HASHES" in refused.stderr
    shutil.copy(real, house)
    subprocess.run(words, check=True)


@pytest.mark.slow
def test_a_release_is_a_wheel_and_what_is_in_it(tmp_path: Path) -> None:
    """From wheels that are here: a build asks the network for nothing."""
    offline = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheelhouse())}
    program = CHECKOUT / "scripts/build-release"
    subprocess.run([program, tmp_path], env=offline, check=True)
    sums = dict(
        reversed(line.split()) for line in (tmp_path / "SHA256SUMS").read_text().splitlines()
    )
    assert {one.name for one in tmp_path.iterdir()} == {"SHA256SUMS", *sums}
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    (bill,) = tmp_path.glob("enclave_agent-*.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill.read_text()) is None
    told = json.loads(bill.read_bytes())
    assert (told["bomFormat"], told["metadata"]["component"]["name"]) == (
        "CycloneDX",
        "enclave-agent",
    )
    components = {canonicalize_name(one["name"]): one for one in told["components"]}
    for name, one in components.items():
        version, hashes = locked("agent")[name]
        assert one["version"] == str(version)
        said = {
            each["content"]
            for reference in one["externalReferences"]
            for each in reference.get("hashes", ())
        }
        assert said == hashes
    assert {canonicalize_name(need.name) for need in wanted("agent")} <= components.keys()
    needs = {one["ref"]: one.get("dependsOn", []) for one in told["dependencies"]}
    (client,) = (ref for ref in needs if ref.startswith("aiohttp=="))
    assert any(ref.startswith("yarl==") for ref in needs[client])
    assert not {"pytest", "mypy"} & components.keys()


def test_what_is_installed_in_another_version_than_locked_is_no_release() -> None:
    strange = {"components": [{"name": "Stray_One", "version": "1"}]}
    with pytest.raises(ValueError, match="Stray_One 2 is locked, 1 is installed"):
        joined(strange, {"components": [{"name": "stray-one", "version": "2"}]})
