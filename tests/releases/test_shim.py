"""What a config says of the shim: read as the public image's shim reads it."""

from __future__ import annotations

from typing import Any

import pytest

from agent.model.shim import ShimRules, covers
from agent.releases.fields import ReleaseFieldError
from tests.fakes.shim_guest import shim_of


def test_a_shim_that_lists_nothing_lets_everything_through_and_guards_nothing() -> None:
    assert shim_of() == ShimRules()
    for path in ("/", "/health", "/anything/at/all"):
        assert ShimRules().lets_through(path)
        assert not ShimRules().guards(path)


@pytest.mark.parametrize(
    ("pattern", "path", "covered"),
    [
        ("/health", "/health", True),
        ("/health", "/health/", False),
        ("/", "/", True),
        ("/", "/health", False),
        ("/*", "/", True),
        ("/*", "/a/b", True),
        ("*", "/a/b", True),
        ("/v1/*", "/v1/", True),
        ("/v1/*", "/v1", False),
        ("/v1/*", "/v2/x", False),
        ("/v1*", "/v1", True),
        ("/v1*", "/v1/x", True),
        ("/v1*", "/v10", False),
        ("/he*", "/health", False),
        ("/a/*/b", "/a/x/b", False),
        ("/a/*/b", "/a/*/b", True),
        ("", "/", False),
    ],
)
def test_a_wildcard_covers_whole_segments_and_a_literal_itself(
    pattern: str, path: str, covered: bool
) -> None:
    assert covers(pattern, path) is covered


@pytest.mark.parametrize(
    ("members", "guarded"),
    [
        ({}, ()),
        ({"authenticated": False, "authenticated_endpoints": ["/a"]}, ()),
        ({"authenticated_endpoints": ["/a"]}, ()),
        ({"authenticated": True}, ("/v1/chat/completions",)),
        ({"authenticated": True, "authenticated_endpoints": []}, ()),
        ({"authenticated": True, "authenticated_endpoints": ["/a", "/b/*"]}, ("/a", "/b/*")),
        ({"authenticated": True, "control_plane": ""}, ()),
        ({"authenticated": 3}, ("/v1/chat/completions",)),
    ],
)
def test_paths_are_guarded_where_keys_are_checked(
    members: dict[str, Any], guarded: tuple[str, ...]
) -> None:
    assert shim_of(**members).guarded == guarded


@pytest.mark.parametrize(
    ("limit", "all_of_them"), [(5, True), (0.5, True), (0, False), ("x", False)]
)
def test_a_rate_limit_wants_a_key_for_every_path(limit: object, all_of_them: bool) -> None:
    assert shim_of(rate_limit=limit).guards("/health") is all_of_them


@pytest.mark.parametrize(
    "path",
    [
        "/.well-known/tinfoil-boot-stages",
        "/.well-known/tinfoil-containers",
        "/.well-known/tinfoil-attestation",
        "/.well-known/hpke-keys",
    ],
)
def test_the_shims_own_documents_never_reach_the_workload(path: str) -> None:
    assert not ShimRules().lets_through(path)
    assert not ShimRules(paths=("/*", path)).lets_through(path)
    assert ShimRules(paths=("/*",)).lets_through("/.well-known/of-the-workload")


@pytest.mark.parametrize(
    ("members", "path"),
    [
        ({"paths": "/health"}, "shim.paths"),
        ({"authenticated": True, "authenticated_endpoints": 1}, "shim.authenticated-endpoints"),
        (
            {"authenticated": True, "authenticated_endpoints": ["/a", 2]},
            "shim.authenticated-endpoints[1]",
        ),
    ],
)
def test_wrong_patterns_are_refused_by_name(members: dict[str, Any], path: str) -> None:
    with pytest.raises(ReleaseFieldError) as refused:
        shim_of(**members)
    assert refused.value.path == path
