"""Which machine a version expects, and where a source keeps its files."""

from __future__ import annotations

import pytest

from agent.releases.layout import layout_for, parse_version
from agent.releases.naming import Kind, artifact_name, artifact_paths, manifest_path


@pytest.mark.parametrize(
    "version", ["0.11.0", "v0.11.0", "0.11.7", "0.12.0-rc1", "1.0.0", "10.0.0"]
)
def test_versions_from_0_11_have_the_virtio_pci_layout(version: str) -> None:
    assert layout_for(version) == "virtio-pci"


@pytest.mark.parametrize("version", ["0.10.8", "0.10.99999", "0.7.5", "0.6.9", "0.0.0"])
def test_older_versions_have_none(version: str) -> None:
    assert layout_for(version) is None


def test_numbers_are_compared_as_numbers() -> None:
    assert parse_version("0.9.0") < parse_version("0.11.0") < parse_version("0.100.0")


def test_artifacts_are_looked_for_beside_the_manifest_then_under_images() -> None:
    assert manifest_path("own/hello", "v1") == "own/hello/v1/tinfoil-deployment.json"
    name = artifact_name("v0.11.0", Kind.ROOT_DISK)
    assert list(artifact_paths("own/hello", "v1", name)) == [
        "own/hello/v1/v0.11.0.raw",
        "own/hello/v1/tinfoil-inference-v0.11.0.raw",
        "own/hello/images/v0.11.0.raw",
        "own/hello/images/tinfoil-inference-v0.11.0.raw",
        "images/v0.11.0.raw",
        "images/tinfoil-inference-v0.11.0.raw",
    ]
