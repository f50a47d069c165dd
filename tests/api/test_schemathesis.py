"""The description against the server: generated requests, good and bad, on every operation.

Half of the names that are generated are replaced by names that exist, so that more than "no such
name" is tried. 501 and 503 are answers here (the description says where), 500 never is.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from agent.api.openapi import document
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.updates.orders import Caller, NewDeployment
from agent.wire.text import DEPLOYMENT_PATTERN, ENCLAVE_PATTERN
from tests.fakes.api_server import ThreadedRpc, ThreadedTcp
from tests.fakes.engine import FakeEngine
from tests.fakes.fleet import Pki

pytestmark = pytest.mark.slow

ENCLAVE: list[str] = []
TURNS = itertools.count()
STREAM_S = 0.5  # a stream has no end: so long is it read


def _populated() -> FakeEngine:
    """A deployment that runs, and one in the middle of its first update."""
    engine = FakeEngine()

    async def fill() -> None:
        for n, name in enumerate(("web", "api")):
            request = NewDeployment(
                name=DeploymentName(name),
                repo=name,
                tag="v1",
                listen=Listen(address="127.0.0.1", port=8443 + n),
            )
            await engine.deploy(request, Caller(name="test"))

    asyncio.run(fill())
    ENCLAVE[:] = [engine.finish("web").enclave]
    engine.consoles[ENCLAVE[0]] = b"hello\n"
    engine.advance("api")
    return engine


def _aim(case: Any) -> None:
    """Every other good name becomes one that is there, and every good key one that is new."""
    turn = next(TURNS)
    case.body = _whole(case.body)
    names = case.path_parameters or {}
    if turn % 2 and re.fullmatch(DEPLOYMENT_PATTERN, str(names.get("name", ""))):
        names["name"] = "web"
    if (
        turn % 2
        and "/enclaves/" in case.operation.path
        and re.fullmatch(ENCLAVE_PATTERN, str(names.get("id", "")))
    ):
        names["id"] = ENCLAVE[0]
    if case.headers and re.fullmatch("[!-~]{1,200}", str(case.headers.get("Idempotency-Key", ""))):
        case.headers["Idempotency-Key"] = f"key-{turn}"


def _whole(value: Any) -> Any:
    """JSON Schema takes 14.0 for an integer; the agent wants it written as one."""
    match value:
        case float() if value.is_integer():
            return int(value)
        case dict():
            return {key: _whole(inner) for key, inner in value.items()}
        case list():
            return [_whole(inner) for inner in value]
    return value


def _follows(case: Any) -> bool:
    return case.operation.path == "/v1/events"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadedTcp(_populated()) as server:
        yield f"http://127.0.0.1:{server.port}"


class _Unnamed(requests.adapters.HTTPAdapter):
    """Host names in certificates of a fleet say nothing."""

    def init_poolmanager(self, *arguments: Any, **named: Any) -> None:
        super().init_poolmanager(*arguments, assert_hostname=False, **named)


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """How a coordinator calls over mutual TLS."""
    pki = Pki(tmp_path_factory.mktemp("fleet") / "pki")
    member = pki.coordinator()
    with ThreadedRpc(_populated(), pki) as server, requests.Session() as session:
        session.mount("https://", _Unnamed())
        yield {
            "base_url": f"https://127.0.0.1:{server.port}",
            "session": session,
            "cert": (str(member.pem), str(member.key)),
            "verify": str(pki.ca),
        }


schema = schemathesis.openapi.from_dict(document())


def _tried(max_examples: int) -> Any:
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )


@schema.parametrize()
@_tried(20)
def test_no_generated_request_finds_what_is_not_described(case: Any, url: str) -> None:
    _aim(case)
    response = case.call(base_url=url, timeout=STREAM_S if _follows(case) else None)
    assert response.status_code < 500 or response.status_code in {501, 503}, response.text
    case.validate_response(response, excluded_checks=[not_a_server_error])


@schema.parametrize()
@_tried(4)
def test_no_generated_request_over_mutual_tls_finds_a_fault(
    case: Any, peer: dict[str, Any]
) -> None:
    _aim(case)
    said = str((case.headers or {}).get("Coordinator-Epoch", "0"))
    epoch = {"Coordinator-Epoch": "1"} if re.fullmatch("[0-9]{1,15}", said) else None
    response = case.call(headers=epoch, timeout=2 * STREAM_S if _follows(case) else None, **peer)
    assert response.status_code < 500 or response.status_code in {501, 503}, response.text
    case.validate_response(response, excluded_checks=[not_a_server_error])
