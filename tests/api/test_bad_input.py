"""Wrong requests: each is refused with the field's path, and none harms anything."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api import validation
from agent.api.body import decode
from agent.api.problems import HttpError
from agent.model.ids import DeploymentName
from agent.updates.errors import FieldError
from agent.wire.requests import DeployRequest, PlanRequest, RollbackRequest, UpdateRequest
from tests.api_bodies import DEPLOY, WRONG_DEPLOY

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(("change", "field"), WRONG_DEPLOY)
async def test_every_wrong_field_of_a_deployment_is_named(
    api, change: dict[str, Any], field: str
) -> None:
    answer = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY | change)
    assert (answer.status, answer.json["field"]) == (400, field), answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.json["detail"].startswith(field)
    assert api.engine.calls == []


@pytest.mark.parametrize("field", ["tag", "listen"])
async def test_a_needed_field_that_is_missing_is_named(api, field: str) -> None:
    body = {name: value for name, value in DEPLOY.items() if name != field}
    answer = await api.ask("PUT", "/v1/deployments/web", json=body)
    assert (answer.status, answer.json["field"]) == (400, field)
    assert answer.json["detail"] == f"{field}: is needed"


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        (UpdateRequest, {"tag": None}, "tag"),
        (UpdateRequest, {"strategy": "fast"}, "strategy"),
        (UpdateRequest, {"variables": {"A": 1}}, "variables.A"),
        (UpdateRequest, {"revert_after_switch": "no"}, "revert_after_switch"),
        (UpdateRequest, {"domain": 5}, "domain"),
        (RollbackRequest, {"to": 0}, "to"),
        (RollbackRequest, {"to": 1.5}, "to"),
        (PlanRequest, {"demand": {"memory_mib": 1}}, "demand.vcpus"),
        (PlanRequest, {"deployment": "web", "secrets": {"K": "s3cret"}}, "secrets"),
        (PlanRequest, {"demand": {"memory_mib": -1, "vcpus": 1}}, "demand.memory_mib"),
        (PlanRequest, {"demand": {"memory_mib": 10**30, "vcpus": 1}}, "demand.memory_mib"),
        (dict[str, str | None], {"A": ["x"]}, "A"),
    ],
)
def test_other_bodies_name_their_fields_too(kind: Any, body: Any, field: str) -> None:
    with pytest.raises(HttpError) as caught:
        decode(json.dumps(body).encode(), kind)
    assert caught.value.field == field


@pytest.mark.parametrize("value", ["", "null"])
async def test_a_secret_that_a_guest_takes_as_missing_is_refused_by_its_name(
    api, value: str
) -> None:
    given = {"GOOD": "value", "BAD": value}
    for method, path, body, field in (
        ("PUT", "/v1/deployments/web", DEPLOY | {"secrets": given}, "secrets.BAD"),
        ("POST", "/v1/deployments/web/updates", {"secrets": given}, "secrets.BAD"),
        ("PUT", "/v1/deployments/web/secrets", given, "BAD"),
    ):
        answer = await api.ask(method, path, json=body)
        assert (answer.status, answer.json["field"]) == (400, field), answer.json
        assert "must not be empty or the text null" in answer.json["detail"]


def test_a_variable_may_be_empty_and_a_secret_removed() -> None:
    body = decode(b'{"variables": {"A": "", "B": "null"}, "secrets": {"K": null}}', UpdateRequest)
    change = validation.change(body)
    assert (change.variables, change.secrets) == ({"A": "", "B": "null"}, {"K": None})


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(FieldError) as caught:
        validation.plan_question(PlanRequest())
    assert caught.value.path == "deployment"


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"deployment": "web", "secrets": ["K", "K=1"]}, "secrets[1]"),
        ({"deployment": "web", "variables": ["", "K"]}, "variables[0]"),
        ({"demand": {"memory_mib": 1, "vcpus": 1}, "secrets": ["K"]}, "demand"),
    ],
)
def test_a_plan_takes_names_of_a_deployments_variables_and_secrets(
    body: dict[str, Any], path: str
) -> None:
    with pytest.raises(FieldError) as error:
        validation.plan_question(decode(json.dumps(body).encode(), PlanRequest))
    assert error.value.path == path


@pytest.mark.parametrize(
    "name",
    [
        "..",
        "%2e%2e",
        "a,b",
        "a%0Ab",
        "a%2Fb",
        "A",
        "-a",
        "a-",
        "a" * 64,
        "%00",
        "%ff",
        "é",
        "a%20b",
    ],
)
async def test_no_name_but_a_name_gets_anywhere(api, name: str) -> None:
    from yarl import URL

    for method, tail in (("GET", ""), ("PUT", ""), ("POST", "/stop"), ("GET", "/updates")):
        url = URL(f"http://agent/v1/deployments/{name}{tail}", encoded=True)
        more = {"json": DEPLOY} if method == "PUT" else {}
        async with api.session.request(method, url, **more) as response:
            assert response.status in {400, 404, 405}, (method, tail)
            assert response.content_type == "application/problem+json"
    assert api.engine.calls == []


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"nonsense",
        b"[]",
        b'"text"',
        b'{"tag": NaN}',
        b"\xff\xfe",
        b'{"tag": "\xff"}',
        b'{"tag": "\\ud800"}',
        b"[" * 100_000,
        b'{"variables": ' + b"[" * 100_000,
        b'{"variables": {"A": ' * 10_000,
        b"",
    ],
)
async def test_what_is_not_the_right_json_is_refused(api, data: bytes) -> None:
    answer = await api.ask("PUT", "/v1/deployments/web", data=data, headers=JSON)
    assert answer.status == 400
    assert answer.json["code"] in {"bad_json", "bad_request"}


async def test_a_body_that_is_not_called_json_is_refused(api) -> None:
    for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {"Content-Type": media}
        answer = await api.ask("PUT", "/v1/deployments/web", data=b"{}", headers=headers)
        assert (answer.status, answer.json["code"]) == (415, "not_json")


@pytest.mark.parametrize("size", [2 * 1024 * 1024 + 1, 10 * 1024 * 1024])
async def test_a_body_over_the_limit_is_too_large(api, size: int) -> None:
    data = io.BytesIO(b"x" * size)
    answer = await api.ask("PUT", "/v1/deployments/web", data=data, headers=JSON)
    assert (answer.status, answer.json["code"]) == (413, "too_large")


async def test_a_body_of_unknown_length_over_the_limit_is_too_large(api) -> None:
    async def endless():
        for _ in range(64):
            yield b" " * 65536

    answer = await api.ask("PUT", "/v1/deployments/web", data=endless(), headers=JSON)
    assert answer.status == 413


async def test_a_compressed_bomb_is_too_large(api) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    headers = JSON | {"Content-Encoding": "gzip"}
    answer = await api.ask("PUT", "/v1/deployments/web", data=bomb, headers=headers)
    assert answer.status == 413


async def test_a_broken_compression_is_a_bad_request(api) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    answer = await api.ask("PUT", "/v1/deployments/web", data=b"not gzip", headers=headers)
    assert answer.status == 400


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/events?after=-1", "after"),
        ("/v1/events?after=1e3", "after"),
        ("/v1/events?after=99999999999999999999", "after"),
        ("/v1/events?limit=0", "limit"),
        ("/v1/events?follow=yes", "follow"),
        ("/v1/events?after=1&after=2", "after"),
        ("/v1/events?aftre=1", "aftre"),
        ("/v1/deployments?x=1", "x"),
    ],
)
async def test_wrong_parameters_are_named(api, path: str, field: str) -> None:
    answer = await api.ask("GET", path)
    assert (answer.status, answer.json["field"]) == (400, field)


async def test_a_listener_named_twice_in_one_request_is_refused(api) -> None:
    extra = [{"listen": "0.0.0.0:8443", "guest_port": 80}]
    answer = await api.ask("PUT", "/v1/deployments/web", json=DEPLOY | {"publish": extra})
    assert (answer.status, answer.json["reasons"][0]["code"]) == (409, "listen_in_use")


async def test_an_unknown_path_and_a_wrong_method_are_problems(api) -> None:
    unknown = await api.ask("GET", "/v2/things")
    assert (unknown.status, unknown.json["code"]) == (404, "unknown_path")
    wrong = await api.ask("PATCH", "/v1/deployments/web")
    assert (wrong.status, wrong.headers["Allow"]) == (405, "DELETE, GET, HEAD, PUT")


async def test_what_is_no_http_is_answered_as_a_problem_and_not_logged_loud(api, caplog) -> None:
    for rubbish in (b"\x16\x03\x01\x02\r\n\r\n", b"GET /" + b"a" * 100_000, b"NOPE\r\n\r\n"):
        reader, writer = await asyncio.open_unix_connection(str(api.socket))
        try:
            writer.write(rubbish)
            answer = await reader.read()
        finally:
            writer.close()
        assert b" 400 " in answer
        assert b"application/problem+json" in answer
    assert not [record for record in caplog.records if record.levelname in {"ERROR", "WARNING"}]


async def test_a_client_that_leaves_early_does_not_undo_what_it_asked(api) -> None:
    body = json.dumps(DEPLOY)
    reader, writer = await asyncio.open_unix_connection(str(api.socket))
    head = f"PUT /v1/deployments/web HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    await writer.drain()
    writer.transport.abort()
    del reader
    while "web" not in api.engine.snapshot.deployments:
        await api.engine.changed.beyond(api.engine.changed.count, 5)
    assert (await api.ask("GET", "/v1/deployments/web")).status == 200


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=12,
    )
)
def test_any_json_is_taken_or_refused_and_never_breaks_anything(value: Any) -> None:
    data = json.dumps(value, allow_nan=True).encode()
    for kind in (DeployRequest, UpdateRequest, PlanRequest, RollbackRequest):
        with contextlib.suppress(HttpError):
            decode(data, kind)


def test_a_request_shows_nothing_of_its_secrets_when_printed() -> None:
    body = decode(json.dumps(DEPLOY | {"secrets": {"K": "s3cret"}}).encode(), DeployRequest)
    assert "s3cret" not in repr(body)
    assert "s3cret" not in repr(validation.new_deployment(DeploymentName("web"), body))
    update = decode(b'{"secrets": {"K": "s3cret"}}', UpdateRequest)
    assert "s3cret" not in repr(validation.change(update))
