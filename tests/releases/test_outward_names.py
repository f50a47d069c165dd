"""Which hosts a workload's guest opens connections to, as its config says."""

from __future__ import annotations

import pytest

from agent.releases.outward import OutwardName, outward_names

DIGEST = f"@sha256:{'0' * 64}"


def test_registries_keepers_and_the_control_plane_are_named_by_their_fields() -> None:
    config = f"""
cvm-version: 0.5.0
containers:
  - {{name: a, image: "registry.corp.example:5000/team/a{DIGEST}"}}
  - {{name: b, image: "ghcr.io/team/b:v1{DIGEST}"}}
  - {{name: c, image: "ghcr.io/team/c{DIGEST}"}}
  - {{name: d, image: "hashicorp/http-echo{DIGEST}"}}
vault-url: https://vault.corp.example:8200/v1
keyserver-url: keys.corp.example
shim: {{control-plane: "http://10.1.2.3/api"}}
"""
    assert outward_names(config.encode()) == (
        OutwardName("containers[0].image", "registry.corp.example", 5000),
        OutwardName("containers[1].image", "ghcr.io", 443),
        OutwardName("containers[3].image", "registry-1.docker.io", 443),
        OutwardName("vault-url", "vault.corp.example", 8200),
        OutwardName("keyserver-url", "keys.corp.example", 443),
        OutwardName("shim.control-plane", "10.1.2.3", 80),
    )


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"[]",
        b"a: {",
        b"containers: 1\nshim: 2\nvault-url: 3",
        f"containers: [{{image: 'localhost/web{DIGEST}'}}]\nvault-url: http://127.0.0.1:1".encode(),
        b"containers: [1, {image: 2}, {}]\nvault-url: 'https://'\nkbs-url: 'https://h:port/'",
    ],
)
def test_what_is_not_understood_names_nobody(config: bytes) -> None:
    assert outward_names(config) == ()
