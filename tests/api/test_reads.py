"""What is read: fields as agreed, cheap, and true to one snapshot."""

from __future__ import annotations

import datetime as dt

import msgspec

from agent.api.page import StatusPage
from agent.api.surface import NO_COORDINATOR
from agent.model.reasons import DowntimeEstimate
from agent.model.revision import Fault
from agent.updates.snapshot.snapshot import Estimate
from agent.wire.host_views import StatusView
from tests.fakes.api_server import surface_of
from tests.fakes.engine import STAGES, FakeEngine

UPDATE = (
    "id deployment status strategy step revision tag from_revision from_tag reasons warnings "
    "staging created_at started_at ready_at switched_at finished_at downtime_s "
    "reset_connections error serves next_steps progress"
)
DEPLOYMENT = (
    "name status tag revision active_slot listen publish domain guest_domain variables secrets "
    "stale_secrets debug simulated rollback next_update update enclaves error degraded probes "
    "refused reach health_falls fell_at warnings"
)
ENCLAVE = (
    "id deployment slot revision state teardown gpus memory_mib vcpus address pid unit healthy "
    "attested simulated connections started_at uptime_s guest_metrics debug "
    "played guest containers"
)


async def test_a_deployment_shows_every_agreed_field(api) -> None:
    await api.deploy(variables={"A": "b"}, secrets={"KEY": "s3cret"})
    api.engine.finish("web")
    shown = (await api.ask("GET", "/v1/deployments/web")).json
    assert list(shown) == DEPLOYMENT.split()
    assert list(shown["update"]) == UPDATE.split()
    assert list(shown["enclaves"][0]) == ENCLAVE.split()
    assert shown["secrets"] == ["KEY"]
    assert shown["update"]["status"] == "completed"
    assert shown["update"]["progress"]["percent"] == 100
    assert shown["enclaves"][0]["attested"] is None


async def test_how_the_workload_is_asked_is_shown_as_wanted_and_as_it_came_to(api) -> None:
    probes = {"path": "/ready", "host": "web.example:8443"}
    await api.deploy(probes=probes, domain="api.example")
    shown = (await api.ask("GET", "/v1/deployments/web")).json
    assert shown["probes"] == probes | {
        "asked_path": "/ready",
        "asked_host": "web.example:8443",
        "healthy_when": "2xx or 3xx",
    }
    assert shown["warnings"] == shown["update"]["warnings"] == shown["next_update"]["warnings"]


async def test_a_probe_that_tells_nothing_says_so_and_is_a_warning(api) -> None:
    from agent.probes.port import HealthView, ProbeView

    await api.deploy()
    api.engine.advance("web")
    api.engine.advance("web")
    (enclave,) = api.engine.snapshot.deployments["web"].enclaves
    vain = ProbeView(
        name="https /x", passing=0, needed=2, failing=0, last="/x: HTTP 401", unknown=True
    )
    health = HealthView(launch_uuid="u", probes=(vain,))
    api.engine.set_facts("web", enclave.row.id, health=health)
    shown = (await api.ask("GET", "/v1/deployments/web")).json
    assert shown["warnings"] == ["https /x tells nothing: /x: HTTP 401"]
    assert shown["update"]["progress"]["probes"] == [
        {"name": "https /x", "passing": 0, "needed": 2, "last": "/x: HTTP 401", "unknown": True}
    ]


async def test_a_booting_update_shows_stages_probes_deadline_and_percent(api) -> None:
    await api.deploy()
    api.engine.advance("web")
    api.engine.advance("web")
    progress = (await api.ask("GET", "/v1/deployments/web/updates/current")).json["progress"]
    assert [stage["name"] for stage in progress["boot_stages"]["stages"]] == list(STAGES)
    assert progress["probes"][0] == {"name": "http", "passing": 0, "needed": 2, "last": "200"}
    assert progress["deadline_at"] == "2026-01-01T00:02:02Z"
    assert 22 < progress["percent"] < 60


async def test_an_update_shows_what_this_host_has_learned_of_its_like(api) -> None:
    await api.deploy()
    api.engine.advance("web")
    path = "/v1/deployments/web/updates/current"
    names = ("boot_estimate_s", "downtime_estimate_s", "ready_estimate_at")
    progress = (await api.ask("GET", path)).json["progress"]
    assert [progress[name] for name in names] == [None, None, None]
    usual = DowntimeEstimate(p50=2.5, p90=4.0, samples=3)
    ready_at = api.engine.clock.now().plus(7.5)
    api.engine.expected = Estimate(boot=usual, ready_at=ready_at)
    api.engine.advance("web")
    progress = (await api.ask("GET", path)).json["progress"]
    shown = {"p50": 2.5, "p90": 4.0, "samples": 3}
    assert [progress[name] for name in names] == [shown, None, "2026-01-01T00:00:08.500000Z"]
    api.engine.finish("web")
    ended = (await api.ask("GET", "/v1/deployments/web")).json["update"]["progress"]
    assert [ended[name] for name in names] == [None, None, None]


async def test_percent_never_goes_back_on_the_good_path(api) -> None:
    await api.deploy()
    seen = []
    while True:
        update = (await api.ask("GET", "/v1/deployments/web/updates/current")).json
        seen.append(update["progress"]["percent"])
        if update["finished_at"]:
            break
        api.engine.advance("web")
    assert seen == sorted(seen)
    assert seen[-1] == 100


async def test_a_failed_update_tells_probe_and_console(api) -> None:
    await api.deploy()
    fault = Fault(code="unhealthy", detail="no", step="verify", probe="503", console_tail="oops\n")
    api.engine.fail("web", fault)
    shown = (await api.ask("GET", "/v1/deployments/web")).json
    assert shown["update"]["error"] == msgspec.to_builtins(fault)
    assert shown["update"]["progress"]["percent"] is None
    assert shown["status"] == "failed"
    assert shown["error"]["console_tail"] == "oops\n"


async def test_updates_come_newest_first(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    await api.ask("POST", "/v1/deployments/web/updates", json={"tag": "v2"})
    found = (await api.ask("GET", "/v1/deployments/web/updates")).json["updates"]
    assert [one["tag"] for one in found] == ["v2", "v1.0.0"]
    assert found[0]["progress"]["percent"] == 0


async def test_the_status_has_its_agreed_members(api) -> None:
    await api.deploy()
    status = (await api.ask("GET", "/status")).json
    for name in ("host", "gpus", "capacity", "deployments", "coordinator", "problems"):
        assert name in status
    assert status["host"]["accel"] == "tcg"
    assert status["host"]["why"]["accel"] == "the bounded proof of KVM failed"
    assert status["coordinator"]["configured"] is False
    assert msgspec.convert(status, StatusView)


async def test_reading_again_what_was_sent_loses_nothing(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    body = (await api.ask("GET", "/status")).text.encode()
    assert msgspec.json.encode(msgspec.json.decode(body, type=StatusView)) == body


def test_the_status_is_encoded_once_a_snapshot() -> None:
    engine = FakeEngine()
    page = StatusPage(engine, lambda: NO_COORDINATOR)
    first = page.body()
    assert page.body() is first
    engine.publish()
    assert page.body() is not first
    assert page.body() == first


async def test_capacity_tells_the_next_update_of_each_deployment(api) -> None:
    await api.deploy()
    shown = (await api.ask("GET", "/v1/capacity")).json
    assert shown["deployments"]["web"]["strategy"] == "blue_green"
    assert shown["total"]["memory_mib"] == 4096


async def test_ready_says_why_not(api) -> None:
    assert (await api.ask("GET", "/readyz")).json == {"ready": True, "reasons": []}
    api.engine.ready = False
    api.engine.publish()
    answer = await api.ask_status("GET", "/readyz")
    assert answer.status == 503
    assert answer.json == {"ready": False, "reasons": ["adopting enclaves"]}
    assert (await api.ask_status("GET", "/healthz")).status == 200


async def test_a_dead_loop_shows_in_healthz() -> None:
    from agent.api.reads import healthz
    from agent.api.roles import Role
    from agent.api.route import Call
    from agent.updates.orders import Caller

    surface = surface_of(FakeEngine(), alive=lambda: ["reconciler has died"])
    call = Call(surface, Role.STATUS, None, {}, {}, None, Caller(name="status"))
    reply = await healthz(call)
    assert reply.status == 503
    assert msgspec.json.decode(reply.body)["reasons"] == ["reconciler has died"]


async def test_boot_stages_come_as_the_guest_gave_them(api) -> None:
    await api.deploy()
    enclave = api.engine.advance("web").enclave
    missing = await api.ask("GET", f"/v1/enclaves/{enclave}/boot-stages")
    assert (missing.status, missing.json["code"]) == (404, "not_known_yet")
    api.engine.advance("web")
    shown = (await api.ask("GET", f"/v1/enclaves/{enclave}/boot-stages")).json
    assert shown["started_at"] == "2026-01-01T00:00:00Z"


async def test_the_console_is_the_newest_text_whatever_the_guest_printed(api) -> None:
    await api.deploy()
    enclave = api.engine.advance("web").enclave
    api.engine.consoles[enclave] = b"begin\n\xff\x1b[31mred\x00\n" + "é".encode() * 3
    answer = await api.ask("GET", f"/v1/enclaves/{enclave}/console")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.text == "begin\n\ufffd\x1b[31mred\x00\néé" + "é"
    cut = await api.ask("GET", f"/v1/enclaves/{enclave}/console?tail=3")
    assert cut.text == "\ufffdé"


async def test_events_come_in_pages(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    first = (await api.ask("GET", "/v1/events?limit=2")).json
    assert [event["sequence"] for event in first["events"]] == [1, 2]
    rest = (await api.ask("GET", f"/v1/events?after={first['next']}")).json
    assert rest["events"][0]["sequence"] == 3
    assert (await api.ask("GET", "/v1/events?after=999")).json == {"events": [], "next": 999}


async def test_pruned_events_are_gone_with_the_oldest_named(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    api.engine.prune_events(3)
    answer = await api.ask("GET", "/v1/events")
    assert (answer.status, answer.json["code"], answer.json["oldest"]) == (410, "pruned", 3)


async def test_attestation_of_an_enclave_is_absent_here_and_of_none_unknown(api) -> None:
    await api.deploy()
    enclave = api.engine.advance("web").enclave
    path = f"/v1/enclaves/{enclave}/attestation"
    assert (await api.ask("GET", path)).status == 501
    assert (await api.ask("GET", f"{path}?nonce=xyz")).json["field"] == "nonce"
    assert (await api.ask("GET", "/v1/enclaves/aaaaaaaa/attestation")).status == 404


async def test_moments_of_an_update_agree_although_the_wall_clock_is_set_meanwhile(api) -> None:
    await api.deploy()
    api.engine.advance("web")
    api.engine.clock.jump_wall(-3600)
    api.engine.finish("web")
    (update,) = (await api.ask("GET", "/v1/deployments/web/updates")).json["updates"]
    names = ("created_at", "started_at", "ready_at", "switched_at", "finished_at")
    told = [dt.datetime.fromisoformat(update[name]) for name in names if update[name]]
    assert told == sorted(told)
    assert told[-1] - told[0] < dt.timedelta(seconds=60)
    observed_at = (await api.ask("GET", "/status")).json["observed_at"]
    assert told[-1] <= dt.datetime.fromisoformat(observed_at)
