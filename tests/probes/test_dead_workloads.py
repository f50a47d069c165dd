"""Rounds at a guest with the shim's manners: what is the workload's answer, and what is not.

Its containers run and its boot is complete throughout, so that they alone would call it healthy.
"""

from __future__ import annotations

import pytest

from agent.host.contact import client_context
from agent.model.ids import EnclaveId
from agent.model.shim import ShimRules
from agent.probes.choice import choose_path
from agent.probes.port import ProbeTarget
from agent.probes.round import RoundOrder, probe_names, run_round
from agent.probes.verdict import Health, ProbeResult, Thresholds, begin, fold, views
from simulator.manual_clock import ManualClock
from tests.fakes.shim_guest import ShimGuest, not_up, shim_of
from tests.fakes.tls_guest import reply

THRESHOLDS = Thresholds(success=2, failure=3)


async def watch(
    guest: ShimGuest,
    rules: ShimRules,
    named: str | None = None,
    host: str | None = None,
    rounds: int = 3,
) -> Health:
    """What some rounds come to, asked as the agent would ask a release with such a shim."""
    path = choose_path(rules, named)
    target = ProbeTarget(
        enclave=EnclaveId("aaaaaaaa"),
        launch_uuid="u1",
        https=await guest.start(),
        health_path=path,
        path_named=named is not None,
        path_guarded=path is not None and rules.guards(path),
        host=host,
        tcp=(),
        container_names=("web",),
    )
    health, clock = begin(probe_names(target)), ManualClock()
    order = RoundOrder(context=client_context(), timeout_s=20.0, now=clock.now)
    try:
        for _ in range(rounds):
            result = await run_round(target, order)
            health = fold(health, result.observations, result.keys, result.at, THRESHOLDS)
    finally:
        await guest.stop()
    return health


def last(health: Health, probe: str) -> ProbeResult:
    (found,) = (state.last for state in health.probes if state.name == probe)
    assert found is not None
    return found


PATHS = [
    [],
    ["/*"],
    ["/health"],
    ["/api/health", "/api/*"],
    ["/v1/models", "/v1/*"],
    ["/"],
]


@pytest.mark.parametrize("paths", PATHS)
async def test_a_workload_that_answers_is_healthy_whatever_the_shim_lists(
    paths: list[str],
) -> None:
    health = await watch(ShimGuest(paths), shim_of(paths=paths))
    assert health.healthy is True


@pytest.mark.parametrize("paths", PATHS)
async def test_running_containers_with_a_dead_port_are_not_healthy_where_a_path_can_tell(
    paths: list[str],
) -> None:
    guest = ShimGuest(paths)
    guest.workload = None
    health = await watch(guest, shim_of(paths=paths))
    assert health.healthy is False
    assert health.fault is not None
    assert "HTTP 502" in health.fault.detail


@pytest.mark.parametrize("status", ["pending", "failed"])
async def test_a_workload_that_is_not_up_is_not_healthy_and_what_is_said_is_kept(
    status: str,
) -> None:
    guest = ShimGuest(["/*"])
    guest.before = not_up(status)
    health = await watch(guest, shim_of(paths=["/*"]))
    assert health.healthy is False
    assert f"Workload proxy is not ready. ({status})" in last(health, "https /health").answer


async def test_where_no_path_can_be_asked_the_containers_decide() -> None:
    guest = ShimGuest(["/v1/*"])
    guest.workload = None
    health = await watch(guest, shim_of(paths=["/v1/*"]))
    assert [state.name for state in health.probes] == ["boot-stages", "containers", "tls-key"]
    assert health.healthy is True


async def test_a_guarded_path_that_was_named_is_unknown_and_not_held_against_it() -> None:
    keyed = {"authenticated": True, "authenticated_endpoints": ["/private"]}
    guest = ShimGuest(["/private"], ["/private"])
    health = await watch(guest, shim_of(paths=["/private"], **keyed), "/private")
    assert health.healthy is True
    (view,) = (one for one in views(health, THRESHOLDS) if one.name == "https /private")
    assert (view.unknown, view.passing, view.failing) == (True, 0, 0)
    assert "HTTP 401" in (view.last or "")


async def test_a_guarded_path_does_not_make_a_sick_container_healthy() -> None:
    keyed = {"authenticated": True, "authenticated_endpoints": ["/private"]}
    guest = ShimGuest(["/private"], ["/private"])
    guest.answers["/.well-known/tinfoil-containers"] = reply(200, b'{"containers": []}')
    health = await watch(guest, shim_of(paths=["/private"], **keyed), "/private")
    assert health.healthy is False


async def test_a_workload_that_wants_credentials_on_an_open_path_fails_with_the_remedy() -> None:
    guest = ShimGuest(["/health"])
    guest.workload = lambda _path, _host: reply(401, b"who are you?")
    health = await watch(guest, shim_of(paths=["/health"]))
    assert health.healthy is False
    assert "--probe-path" in last(health, "https /health").answer


async def test_a_workload_without_the_health_path_fails_with_the_remedy() -> None:
    guest = ShimGuest(["/*"])
    guest.workload = lambda _path, _host: reply(404, b"<h1>Not Found</h1>")
    health = await watch(guest, shim_of(paths=["/*"]))
    assert health.healthy is False
    assert "the workload has no such path" in last(health, "https /health").answer
    assert "--probe-path" in last(health, "https /health").answer


async def test_at_a_path_that_is_not_there_for_health_any_answer_of_the_workload_is_life() -> None:
    guest = ShimGuest(["/v1/chat"])
    guest.workload = lambda _path, _host: reply(405, b"POST, please")
    assert (await watch(guest, shim_of(paths=["/v1/chat"]))).healthy is True


async def test_the_shims_own_404_is_not_the_workloads_answer() -> None:
    """The guest lists other paths than the agent read: a shim with rules of another version."""
    health = await watch(ShimGuest(["/other"]), shim_of(paths=["/v1/models"]))
    assert last(health, "https /v1/models").unknown
    named = await watch(ShimGuest(["/other"]), shim_of(paths=["/v1/models"]), "/v1/models")
    assert named.healthy is False
    assert "lets no request through" in last(named, "https /v1/models").answer


async def test_a_named_path_must_say_yes() -> None:
    guest = ShimGuest(["/*"])
    guest.workload = lambda path, _host: reply(200 if path == "/ready?full=1" else 404, b"")
    assert (await watch(guest, shim_of(paths=["/*"]), "/ready?full=1")).healthy is True
    guest = ShimGuest(["/*"])
    guest.workload = lambda _path, _host: reply(404, b"")
    assert (await watch(guest, shim_of(paths=["/*"]), "/")).healthy is False


async def test_a_workload_that_minds_its_host_is_asked_by_its_name() -> None:
    def minds(_path: str, host: str) -> bytes:
        return reply(200 if host == "api.example:8443" else 400, b"which host?")

    guest = ShimGuest(["/health"])
    guest.workload = minds
    health = await watch(guest, shim_of(paths=["/health"]), host="api.example:8443")
    assert health.healthy is True
    assert set(guest.hosts) == {"api.example:8443"}
    assert set(guest.names) == {"api.example"}

    guest = ShimGuest(["/health"])
    guest.workload = minds
    health = await watch(guest, shim_of(paths=["/health"]))
    assert health.healthy is False
    assert "--probe-host" in last(health, "https /health").answer
    assert set(guest.names) == {None}
