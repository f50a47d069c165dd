"""Metrics: true to the snapshot, counted since the start, nothing a guest says as a label."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from agent.api.counters import Counters
from agent.model.revision import Fault
from tests.fakes.engine import FakeEngine


async def values(api) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    answer = await api.ask_status("GET", "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"enclave_agent_{name}", frozenset(labels.items())


async def test_deployments_enclaves_and_updates_are_numbers(api) -> None:
    await api.deploy()
    enclave = api.engine.finish("web").enclave
    found = await values(api)
    mine = {"deployment": "web", "enclave": enclave, "slot": "blue"}
    assert found[key("ready")] == 1
    assert found[key("deployment_status", deployment="web", status="running")] == 1
    assert found[key("deployment_status", deployment="web", status="failed")] == 0
    assert found[key("update_status", deployment="web", status="completed")] == 1
    assert found[key("enclave_state", state="running", **mine)] == 1
    assert found[key("enclave_healthy", **mine)] == 1
    assert key("enclave_attested", **mine) not in found
    assert found[key("guest_utilization", kind="cpu_util", **mine)] == 0.25
    assert found[key("capacity_free", resource="memory_mib")] == 3584
    for what in ("link", "data_plane", "forwarding"):
        assert found[key("network_repairs_total", what=what)] == 0
    assert found[key("updates_total", deployment="web", status="completed")] == 1
    labels = {"method": "PUT", "path": "/v1/deployments/{name}", "status": "202"}
    assert found[key("http_requests_total", **labels)] == 1


async def test_what_limits_refused_is_counted_by_deployment_and_limit(api) -> None:
    await api.deploy()
    api.engine.refused = {"guest_flows": 3, "source_connections": 1}
    api.engine.publish()
    found = await values(api)
    assert found[key("refused_total", deployment="web", limit="guest_flows")] == 3
    assert found[key("refused_total", deployment="web", limit="source_connections")] == 1
    shown = (await api.ask_status("GET", "/status")).json["deployments"][0]
    assert shown["refused"] == {"guest_flows": 3, "source_connections": 1}


async def test_no_path_that_somebody_made_up_becomes_a_series(api) -> None:
    for n in range(20):
        await api.ask("GET", f"/made-up/{n}")
        await api.ask("GET", f"/v1/deployments/d{n}")
    found = await values(api)
    series = {dict(labels)["path"] for name, labels in found if "http_requests" in name}
    assert series == {"other", "/v1/deployments/{name}"}


async def test_a_guest_that_reports_nonsense_reports_nothing(api) -> None:
    await api.deploy()
    enclave = api.engine.finish("web").enclave
    health = api.engine.snapshot.deployments["web"].enclaves[0].health
    import msgspec

    odd = msgspec.structs.replace(health, metrics={"cpu_util": 'x"}\n', "gpu_util": [1]})
    api.engine.set_facts("web", enclave, health=odd)
    found = await values(api)
    assert not [name for name, _ in found if "guest_utilization" in name]


def test_an_end_is_counted_once_and_the_past_not_at_all() -> None:
    import asyncio

    from agent.model.resources import Listen
    from agent.updates.orders import Caller, Change, NewDeployment

    engine, counters = FakeEngine(), Counters()
    me = Caller(name="test")
    asyncio.run(
        engine.deploy(
            NewDeployment(name="web", repo="web", tag="v1", listen=Listen(address="::1", port=1)),
            me,
        )
    )
    engine.finish("web")
    counters.observe(engine.snapshot)
    assert counters.updates == {}
    asyncio.run(engine.update("web", Change(), me))
    counters.observe(engine.snapshot)
    engine.fail("web", Fault(code="x", detail="y"))
    for _ in range(3):
        counters.observe(engine.snapshot)
    assert counters.updates == {("web", "failed"): 1}
    asyncio.run(engine.delete("web", me))
    counters.observe(engine.snapshot)
    assert counters.updates == {}
