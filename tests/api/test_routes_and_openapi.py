"""The table of routes, the served paths and the description are one and the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.api.app import make_app
from agent.api.openapi import document
from agent.api.roles import Role
from agent.api.routes import ROUTES
from tests.fakes.api_server import surface_of
from tests.fakes.engine import FakeEngine

DESIGN = {
    "GET /healthz",
    "GET /readyz",
    "GET /status",
    "GET /metrics",
    "GET /openapi.json",
    "GET /v1/inventory",
    "POST /v1/gpus/{bdf}/recover",
    "POST /v1/gpus/{bdf}/release",
    "GET /v1/capacity",
    "POST /v1/plan",
    "POST /v1/leases",
    "GET /v1/leases/{id}",
    "DELETE /v1/leases/{id}",
    "GET /v1/deployments",
    "GET /v1/deployments/{name}",
    "PUT /v1/deployments/{name}",
    "DELETE /v1/deployments/{name}",
    "POST /v1/deployments/{name}/start",
    "POST /v1/deployments/{name}/stop",
    "POST /v1/deployments/{name}/rollback",
    "GET /v1/deployments/{name}/secrets",
    "PUT /v1/deployments/{name}/secrets",
    "POST /v1/deployments/{name}/updates",
    "GET /v1/deployments/{name}/updates",
    "GET /v1/deployments/{name}/updates/current",
    "POST /v1/deployments/{name}/updates/current/accept",
    "POST /v1/deployments/{name}/updates/current/cancel",
    "POST /v1/deployments/{name}/updates/current/retry",
    "GET /v1/enclaves",
    "GET /v1/enclaves/{id}",
    "GET /v1/enclaves/{id}/boot-stages",
    "GET /v1/enclaves/{id}/console",
    "GET /v1/consoles",
    "GET /v1/enclaves/{id}/attestation",
    "GET /v1/doctor",
    "GET /v1/images",
    "POST /v1/images/prune",
    "GET /v1/events",
    "POST /v1/host/coordinator-epoch/reset",
    "POST /v1/deployments/{name}/accept-chip",
    "POST /v1/host/drain",
    "POST /v1/host/undrain",
}


def described() -> set[str]:
    return {
        f"{method.upper()} {path}"
        for path, operations in document()["paths"].items()
        for method in operations
    }


@pytest.mark.parametrize("role", list(Role))
def test_what_is_served_is_described_and_nothing_else(role: Role) -> None:
    app = make_app(surface_of(FakeEngine()), role)
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert served == described() == DESIGN


def test_every_get_can_be_asked_for_its_head_only() -> None:
    app = make_app(surface_of(FakeEngine()), Role.LOCAL)
    paths = {"GET": set[str](), "HEAD": set[str]()}
    for route in app.router.routes():
        if route.method in paths and route.resource is not None:
            paths[route.method].add(route.resource.canonical)
    assert paths["GET"] == paths["HEAD"]


def test_every_path_of_the_design_is_there() -> None:
    design = Path(__file__).parents[2].parent / "shared" / "design" / "api.md"
    if not design.exists():
        pytest.skip("../shared/design/api.md is not on this machine")
    named = set(re.findall(r"/v1/[a-z]+", design.read_text().split("## `/status`")[0]))
    assert named <= {re.match(r"/v1/[a-z]+|/[a-z.]+", route.path)[0] for route in ROUTES}


def test_names_of_operations_are_unique_and_schemas_resolve() -> None:
    told = document()
    names = [op["operationId"] for ops in told["paths"].values() for op in ops.values()]
    assert len(names) == len(set(names))
    references = set(re.findall(r"#/components/schemas/(\w+)", str(told)))
    assert references == set(told["components"]["schemas"])


def test_the_shape_of_a_gpu_is_described_already() -> None:
    properties = document()["components"]["schemas"]["GpuView"]["properties"]
    assert {"bdf", "cc_mode", "link", "health", "owner", "state", "seen_by"} <= set(properties)
