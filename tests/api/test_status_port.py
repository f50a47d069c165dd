"""The status port: how the host is, for everybody on it, and nothing of a tenant."""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.api.credentials import MASK, masked
from agent.api.names import is_ours, names_of_this_host
from agent.api.public import public_status
from agent.model.revision import Fault
from agent.updates.snapshot.snapshot import Problem
from agent.wire.host_views import StatusView
from agent.wire.text import MAX_BODY_BYTES

SENTINEL = "sentinel-5c1d"
PLAIN: dict[Any, Any] = {bool: True, int: 1, float: 1.0, dt.datetime: dt.datetime.now(dt.UTC)}


def full(kind: Any) -> Any:
    """A value of this type in which every free text is the sentinel and nothing is left out."""
    if kind in (str, Any):
        return SENTINEL
    if kind in PLAIN:
        return PLAIN[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return full(next(one for one in inner if one not in (type(None), msgspec.UnsetType)))
    if origin is list:
        return [full(inner[0])]
    if origin is dict:
        return {full(inner[0]): full(inner[1])}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(iter(kind))
    hints = typing.get_type_hints(kind)
    return kind(**{field.name: full(hints[field.name]) for field in msgspec.structs.fields(kind)})


def texts(value: Any, path: str = "") -> Iterator[str]:
    """Where the sentinel stands."""
    if isinstance(value, dict):
        for name, one in value.items():
            if name == SENTINEL:
                yield f"{path} (a name)"
            yield from texts(one, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for one in value:
            yield from texts(one, path)
    elif value == SENTINEL:
        yield path


# What everybody may know of a deployment: which it is, which version runs where, how it is.
TOLD = {
    *("name", "tag", "listen", "publish.listen", "domain", "guest_domain", "rollback.tag"),
    *("next_update.gpus", "update.id", "update.deployment", "update.tag", "update.from_tag"),
    *("update.error.code", "update.error.step", "update.progress.probes.name"),
    *("enclaves.id", "enclaves.deployment", "enclaves.gpus", "enclaves.address", "enclaves.unit"),
    "refused (a name)",  # the configuration's name of a limit
    *("reach.listen", "reach.asked_from"),
    *("error.code", "error.step", "degraded.code", "degraded.step", "rollback.feasibility"),
}


def test_nothing_else_of_a_deployment_is_told_than_what_is_listed_here() -> None:
    """A new field of text fails here until somebody decides whether it is for everybody."""
    told = msgspec.to_builtins(public_status(full(StatusView), [True]))
    assert set(texts(told["deployments"])) == TOLD
    assert told["deployments"][0]["variables"] is None
    assert told["deployments"][0]["secrets"] is None
    assert told["deployments"][0]["stale_secrets"] is None


def test_where_guests_tried_to_go_is_not_told() -> None:
    told = public_status(full(StatusView), [True])
    assert told.egress is not None
    assert told.egress.refused is None


def test_details_of_problems_are_told_only_of_the_host() -> None:
    whole = full(StatusView)
    whole = msgspec.structs.replace(whole, problems=[*whole.problems, *whole.problems])
    tenants, hosts = public_status(whole, [True, False]).problems
    assert (tenants.code, tenants.detail, hosts.detail) == (SENTINEL, None, SENTINEL)
    assert "sudo enclave-agent status" in tenants.mend


async def test_no_word_of_a_tenant_leaves_through_the_port(api) -> None:
    """The same daemon tells it to those who may know."""
    secret, name = "sentinel-value", "SENTINEL_NAME"
    await api.deploy(variables={"LEVEL": secret}, secrets={name: "s3cret"})
    api.engine.problems = (
        Problem(
            code="secrets_missing",
            severity="error",
            detail=f"web waits for values of {name}",
            mend=f"enclave-agent secrets set web {name}=@FILE",
            since=api.engine.clock.now(),
            of_tenant=True,
        ),
    )
    words = {"detail": secret, "probe": secret, "console_tail": secret}
    api.engine.fail("web", Fault(code="container_unhealthy", step="boot", **words))
    inside = (await api.ask("GET", "/status")).text
    assert inside.count(secret) >= 3
    assert name in inside
    for path in ("/status", "/healthz", "/readyz", "/metrics", "/openapi.json"):
        answer = await api.ask_status("GET", path)
        assert secret not in answer.text, path
        assert name not in answer.text, path
    assert (await api.ask_status("GET", "/status")).json["problems"][0][
        "code"
    ] == "secrets_missing"


async def test_a_name_that_is_not_the_hosts_is_refused_and_told_how_to_be_one(api) -> None:
    refused = await api.ask_status("GET", "/status", headers={"Host": "evil.example:8470"})
    assert (refused.status, refused.json["code"]) == (421, "misdirected")
    assert "listen.status_names" in refused.json["detail"]
    for path in ("/healthz", "/metrics"):
        assert (await api.ask_status("GET", path, headers={"Host": "evil.example"})).status == 421
    for host in ("localhost:8470", "127.0.0.1", "[::1]:8470"):
        assert (await api.ask_status("GET", "/healthz", headers={"Host": host})).status == 200
    assert (await api.ask("GET", "/healthz", headers={"Host": "evil.example"})).status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /healthz HTTP/1.1\r\nHost: LOCALHOST.:8470", 200),
        ("GET /healthz HTTP/1.0", 200),
        ("GET http://localhost:8470/healthz HTTP/1.1\r\nHost: localhost", 200),
        ("GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost", 421),
        ("GET http://localhost@evil.example/healthz HTTP/1.1\r\nHost: localhost", 421),
        ("GET http://evil.example/healthz HTTP/1.0", 421),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example", (400, 421)),
        ("GET /healthz HTTP/1.1\r\nHost: localhost, evil.example", 421),
        ("GET /healthz HTTP/1.1\r\nHost:", 421),
    ],
)
async def test_no_form_of_a_request_hides_by_which_name_it_asks(
    api, head: str, status: int | tuple[int, ...]
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", api.status_port)
    writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode())
    said = await reader.readline()
    writer.close()
    assert int(said.split()[1]) in (status if isinstance(status, tuple) else (status,))


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        (None, True),
        ("LOCALHOST", True),
        ("localhost.:80", True),
        ("10.0.0.7:8470", True),
        ("::1", False),  # an IPv6 address stands in brackets
        ("[fe80::1]", True),
        ("node7", True),
        ("node7.fleet.example:8470", True),
        ("status.example", True),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("evil.example", False),
        ("localhost:80@evil.example", False),
        ("0x7f000001", False),
        ("", False),
    ],
)
def test_which_names_are_the_hosts(tmp_path: Path, host: str | None, ours: bool) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text(
        "127.0.0.1 localhost # evil.example\n127.0.1.1\tnode7.fleet.example node7\n"
        "192.0.2.7 evil.example\nnonsense\n\n"
    )
    assert is_ours(host, names_of_this_host(("status.example",), hosts)) is ours


def test_a_host_without_a_table_of_hosts_is_still_localhost(tmp_path: Path) -> None:
    assert "localhost" in names_of_this_host((), tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("API_KEY", "abc"),
        ("apiKey", "abc"),
        ("OPENAI_APIKEY", "abc"),
        ("dbPassword", "hunter"),
        ("DB_PASS", "hunter"),
        ("GITHUB_PAT", "x1"),
        ("HF_TOKEN", "x"),
        ("SLACK", "xoxb-1-2"),
        ("DATABASE_URL", "postgres://app:hunter@db.example/app"),
        ("EXTRA", "--header 'Bearer abcdefghijkl'"),
        ("WHATEVER", "ghp_0123456789"),
        ("CERT", "-----BEGIN RSA PRIVATE KEY-----\nMII"),
        ("SESSION", "eyJhbGciOiJI.eyJzdWIiOiIx.sig"),
        ("SESSIONS", "last-eyJhbGciOiJI.eyJzdWIiOiIx.sig"),
        ("WIKI_URL", "https://a::b@wiki.example"),
        ("AWS", "AKIAIOSFODNN7EXAMPLE"),
    ],
)
def test_what_looks_like_a_credential_is_masked(name: str, value: str) -> None:
    assert masked({name: value}) == {name: MASK}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LEVEL", "debug"),
        ("MONKEY", "banana"),
        ("KEYBOARD", "de"),
        ("AUTHOR", "somebody"),
        ("PUBLIC_KEY", "ssh-ed25519 AAAA"),
        ("API_KEY_FILE", "/run/secrets/key"),
        ("MAX_TOKENS", "4096"),
        ("USE_TOKEN", "true"),
        ("URL", "https://example.com/a:b@c"),
        ("TOKENIZER", "bpe"),
        ("COMPASS", "north"),
        ("API_KEY", ""),
    ],
)
def test_what_does_not_is_shown(name: str, value: str) -> None:
    assert masked({name: value}) == {name: value}


@pytest.mark.parametrize(
    "piece", ["x", "eyJ-", "a+", "a://", "a://b:", ":", "Bearer ", " ", "A ", "-----BEGIN "]
)
@pytest.mark.timeout(60)  # a pattern that reads the rest from each place takes hours
def test_no_value_is_so_long_that_it_is_not_judged_at_once(piece: str) -> None:
    value = piece * (MAX_BODY_BYTES // 16 // len(piece))
    for start in ("", "a://", "-----BEGIN ", "eyJ"):
        assert masked({"LEVEL": start + value + "\n"}) == {"LEVEL": start + value + "\n"}


async def test_a_masked_value_is_what_everybody_is_shown_and_the_guest_is_given_the_real_one(
    api,
) -> None:
    await api.deploy(variables={"API_KEY": "abc", "LEVEL": "debug"})
    shown = (await api.ask("GET", "/v1/deployments/web")).json["variables"]
    assert shown == {"API_KEY": MASK, "LEVEL": "debug"}
    revision = api.engine.snapshot.deployments["web"].revision
    assert revision.variables["API_KEY"] == "abc"
