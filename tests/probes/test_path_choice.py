"""Which path tells whether the workload lives."""

from __future__ import annotations

import msgspec
import pytest

from agent.model.resources import Listen, Publish
from agent.model.revision import ProbeOptions
from agent.probes.choice import asked_probes, choose_path, must_say_yes, unasked
from simulator.rows import revision
from tests.fakes.shim_guest import shim_of

KEYED = {"authenticated": True, "authenticated_endpoints": ["/health"]}


@pytest.mark.parametrize(
    ("paths", "path"),
    [
        ([], "/health"),
        (["/health"], "/health"),
        (["/*"], "/health"),
        (["*"], "/health"),
        (["/a", "/v1/health", "/health"], "/health"),
        (["/v1/*", "/v1/models", "/v1/health"], "/v1/health"),
        (["/", "/api/health"], "/api/health"),
        (["/v1/*", "/v1/models", "/"], "/v1/models"),
        (["/v1/*", "/"], "/"),
        (["/he*", "/x"], "/x"),
        (["/v1/*"], None),
        (["/v1*"], None),
        (["/.well-known/tinfoil-metrics"], None),
        (["/.well-known/tinfoil-proxy"], "/.well-known/tinfoil-proxy"),
        (["/api/health\r\nX: y", "/a b/health", "x/health", "//health", "/a/../health"], None),
        (["/a?b=health", "/%2e/health", "/a#health"], None),
    ],
)
def test_the_path_is_the_one_that_tells_most(paths: list[str], path: str | None) -> None:
    assert choose_path(shim_of(paths=paths), None) == path


@pytest.mark.parametrize(
    ("paths", "path"),
    [
        ([], "/"),
        (["/*"], "/"),
        (["/health", "/*", "/v1/health"], "/v1/health"),
        (["/health", "/metrics"], "/metrics"),
        (["/health"], None),
        (["/health", "/v1/*"], None),
    ],
)
def test_a_path_that_the_shim_guards_is_passed_over(paths: list[str], path: str | None) -> None:
    assert choose_path(shim_of(paths=paths, **KEYED), None) == path


def test_with_a_rate_limit_no_path_can_be_asked_without_a_key() -> None:
    assert choose_path(shim_of(paths=["/*", "/health"], rate_limit=2), None) is None


def test_the_path_that_the_deployment_names_goes_first_even_where_it_is_guarded() -> None:
    assert choose_path(shim_of(paths=["/health", "/ready"]), "/ready?deep=1") == "/ready?deep=1"
    assert choose_path(shim_of(paths=["/health"], **KEYED), "/health") == "/health"


def test_a_path_for_the_purpose_must_say_yes_and_others_only_answer() -> None:
    assert must_say_yes("/health", named=False)
    assert must_say_yes("/api/health", named=False)
    assert must_say_yes("/", named=True)
    assert not must_say_yes("/", named=False)
    assert not must_say_yes("/v1/models", named=False)


def test_a_revision_whose_workload_can_be_asked_is_not_warned_of() -> None:
    assert unasked(revision()) is None


def test_what_decides_instead_is_told_with_the_remedy() -> None:
    listen = Listen(address="127.0.0.1", port=9000)
    published = (Publish(listen=listen, guest_port=8080),)
    blind = revision(health_path=None, container_names=("web",), publish=published)
    told = unasked(blind)
    assert told is not None
    assert "its containers and its published ports (8080) decide" in told
    assert told.endswith("name an open path with probes.path (--probe-path)")
    guarded = unasked(revision(health_path="/x", health_guarded=True, container_names=("web",)))
    assert guarded is not None
    assert guarded.startswith("the guest's shim wants a key for /x: its containers decide")
    assert "nothing but its boot decides" in (unasked(revision(health_path=None)) or "")


@pytest.mark.parametrize(
    ("path", "named", "guarded", "good"),
    [
        ("/health", False, False, "2xx or 3xx"),
        ("/up", True, False, "2xx or 3xx"),
        ("/", False, False, "any answer of the workload below 500"),
        ("/up", True, True, "2xx or 3xx; 401 and 403 are the shim's and tell nothing"),
        (None, False, False, "nothing but its boot decides"),
    ],
)
def test_what_counts_as_healthy_is_told(
    path: str | None, named: bool, guarded: bool, good: str
) -> None:
    probes = ProbeOptions(path=path if named else None)
    plain = revision(probes=probes, health_path=path, health_guarded=guarded, publish=())
    asked = asked_probes(msgspec.structs.replace(plain, container_names=(), domain="web.example"))
    assert (asked.asked_path, asked.healthy_when) == (path, good)
    assert asked.asked_host == "web.example", "the deployment's domain, where none is named"
