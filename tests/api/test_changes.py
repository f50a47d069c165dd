"""What changes something: each request reaches the engine as meant, with who asks."""

from __future__ import annotations

import os

import msgspec
import pytest

from agent.releases.port import ReleaseNotFoundError
from agent.store.port import StoreError, StoreFullError
from agent.traffic.port import TrafficError
from agent.updates.errors import RefusedError
from tests.fakes.engine import FakeEngine


async def test_a_deployment_is_created_and_told_with_its_update(api) -> None:
    answer = await api.deploy(publish=[{"listen": "127.0.0.1:9000", "guest_port": 8080}])
    assert answer.status == 202
    assert answer.json["deployment"]["name"] == "web"
    assert answer.json["deployment"]["publish"] == [
        {"listen": "127.0.0.1:9000", "guest_port": 8080}
    ]
    assert answer.json["update"]["strategy"] == "fresh"


async def test_the_kernel_says_who_asks(api) -> None:
    await api.deploy()
    assert api.engine.calls[0][1].name == f"local:{os.getuid()}"


async def test_a_second_deployment_of_the_name_conflicts(api) -> None:
    await api.deploy()
    answer = await api.deploy()
    assert (answer.status, answer.json["code"]) == (409, "exists")
    assert "reasons" not in answer.json


async def test_a_refusal_carries_its_reasons_with_numbers(api) -> None:
    await api.deploy()
    answer = await api.deploy("other")
    assert answer.status == 409
    assert answer.json["reasons"][0]["code"] == "listen_in_use"
    api.engine.finish("web")
    for n in range(7):
        await api.deploy(f"d{n}", listen=f"127.0.0.1:{9000 + n}")
        api.engine.finish(f"d{n}")
    full = await api.deploy("last", listen="127.0.0.1:9900")
    assert full.json["reasons"][0] == {
        "code": "memory_insufficient",
        "detail": "512 MiB are needed, 0 MiB are free",
        "needed": 512,
        "available": 0,
    }


async def test_absent_keeps_null_removes(api) -> None:
    await api.deploy(variables={"A": "1", "B": "2"})
    api.engine.finish("web")
    path = "/v1/deployments/web/updates"
    await api.ask("POST", path, json={"variables": {"A": None, "C": "3"}})
    api.engine.finish("web")
    shown = (await api.ask("GET", "/v1/deployments/web")).json
    assert shown["variables"] == {"B": "2", "C": "3"}
    await api.ask("POST", path)
    api.engine.finish("web")
    assert (await api.ask("GET", "/v1/deployments/web")).json["variables"] == shown["variables"]
    await api.ask("POST", path, json={"variables": None})
    api.engine.finish("web")
    assert (await api.ask("GET", "/v1/deployments/web")).json["variables"] == {}


async def test_publish_null_removes_every_listener_but_the_first(api) -> None:
    await api.deploy(publish=[{"listen": "127.0.0.1:9000", "guest_port": 8080}])
    api.engine.finish("web")
    await api.ask("POST", "/v1/deployments/web/updates", json={"publish": None})
    api.engine.finish("web")
    assert (await api.ask("GET", "/v1/deployments/web")).json["publish"] == []


async def test_accept_cancel_and_retry_steer_the_current_update(api) -> None:
    await api.deploy(staging=True)
    current = "/v1/deployments/web/updates/current"
    early = await api.ask("POST", f"{current}/accept")
    assert (early.status, early.json["code"]) == (409, "not_ready")
    while api.engine.snapshot.deployments["web"].update.step != "accept":
        api.engine.advance("web")
    assert (await api.ask("GET", current)).json["status"] == "ready"
    assert (await api.ask("POST", f"{current}/accept")).status == 202
    api.engine.finish("web")
    none = await api.ask("POST", f"{current}/cancel")
    assert (none.status, none.json["code"]) == (409, "no_update")
    await api.ask("POST", "/v1/deployments/web/updates", json={"tag": "v2"})
    assert (await api.ask("POST", f"{current}/cancel")).json["status"] == "cancelled"
    assert (await api.ask("POST", f"{current}/retry")).json["code"] == "nothing_to_retry"


async def test_secrets_become_stale_and_restart_nothing(api) -> None:
    await api.deploy(secrets={"KEY": "old"})
    api.engine.finish("web")
    answer = await api.ask("PUT", "/v1/deployments/web/secrets", json={"KEY": "new-s3cret"})
    assert (answer.status, answer.json) == (200, {"stale_secrets": ["KEY"]})
    assert api.engine.values["KEY"] == "new-s3cret"


async def test_stop_start_and_delete(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    stopped = await api.ask("POST", "/v1/deployments/web/stop")
    assert (stopped.status, stopped.json["deployment"]["status"]) == (202, "stopped")
    assert (await api.ask("POST", "/v1/deployments/web/start")).json["strategy"] == "fresh"
    deleted = await api.ask("DELETE", "/v1/deployments/web")
    assert (deleted.status, deleted.json) == (202, {"deployment": None})
    assert (await api.ask("GET", "/v1/deployments/web")).status == 404


async def test_rollback_by_tag_by_revision_and_to_the_one_before(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    await api.ask("POST", "/v1/deployments/web/updates", json={"tag": "v2"})
    api.engine.finish("web")
    for body in ({"to": "v1.0.0"}, {"to": 1}, {}):
        answer = await api.ask("POST", "/v1/deployments/web/rollback", json=body)
        assert (answer.status, answer.json["tag"]) == (202, "v1.0.0")
        await api.ask("POST", "/v1/deployments/web/updates/current/cancel")
    assert (await api.ask("POST", "/v1/deployments/web/rollback", json={"to": "v9"})).status == 404


async def test_drain_refuses_admissions_until_undrained(api) -> None:
    assert (await api.ask("POST", "/v1/host/drain")).json == {"draining": True}
    assert (await api.deploy()).json["code"] == "host_draining"
    assert (await api.ask("POST", "/v1/host/undrain")).json == {"draining": False}
    assert (await api.deploy()).status == 202


async def test_a_plan_changes_nothing(api) -> None:
    answer = await api.ask("POST", "/v1/plan", json={"deployment": "web", "tag": "v1"})
    assert (answer.status, answer.json["strategy"]) == (200, "fresh")
    assert api.engine.calls == []


async def test_while_starting_changes_wait_and_reads_answer(api) -> None:
    api.engine.ready = False
    api.engine.publish()
    answer = await api.deploy()
    assert (answer.status, answer.json["code"]) == (503, "starting")
    assert int(answer.headers["Retry-After"]) >= 1
    assert (await api.ask("GET", "/status")).status == 200


async def test_while_starting_nobody_is_told_that_something_does_not_exist(api) -> None:
    await api.deploy()
    paths = (
        "/v1/deployments/other",
        "/v1/deployments/other/updates/current",
        "/v1/enclaves/aaaaaaaa",
    )
    for ready, status, code in ((True, 404, "not_found"), (False, 503, "starting")):
        api.engine.ready = ready
        api.engine.publish()
        for path in paths:
            answer = await api.ask("GET", path)
            assert (answer.status, answer.json["code"]) == (status, code)
    assert (await api.ask("GET", "/v1/deployments/web")).status == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoreError("locked"), 503, "store_unavailable"),
        (StoreFullError("no space left"), 503, "disk_full"),
        (TrafficError("nft failed"), 503, "traffic_unavailable"),
        (ReleaseNotFoundError("no such tag"), 409, "release_invalid"),
    ],
)
async def test_what_the_engine_cannot_do_is_told_apart(api, error, status, code) -> None:
    api.engine.raises = error
    answer = await api.deploy()
    assert (answer.status, answer.json["code"]) == (status, code)
    assert ("Retry-After" in answer.headers) == (status == 503)


async def test_a_source_that_is_away_asks_for_patience(api) -> None:
    answer = await api.deploy(tag="offline-1")
    assert (answer.status, answer.json["code"]) == (503, "release_source_unavailable")
    assert answer.headers["Retry-After"]


async def test_a_missing_release_is_refused_with_the_reason(api) -> None:
    answer = await api.deploy(tag="missing-1")
    assert answer.json["reasons"] == [
        {"code": "release_invalid", "detail": "no release missing-1 at the source"}
    ]


async def test_a_fault_of_ours_shows_nothing_of_the_inside(api, caplog) -> None:
    api.engine.raises = RuntimeError("password=hunter2")
    answer = await api.deploy()
    assert (answer.status, answer.json["code"]) == (500, "internal")
    assert "hunter2" not in answer.text
    assert "RuntimeError" in caplog.text


def test_a_reason_with_a_wait_tells_when_to_ask_again() -> None:
    from agent.api.problems import reply_to
    from agent.model.reasons import DecidedStrategy, Decision, Reason, ReasonCode

    reason = Reason(code=ReasonCode.GPUS_DIRTY, detail="one GPU is being cleaned")
    refused = Decision(strategy=DecidedStrategy.REFUSE, reasons=(reason,), retry_after_s=12.2)
    reply = reply_to(RefusedError(refused))
    assert reply.headers["Retry-After"] == "13"
    assert msgspec.json.decode(reply.body)["retry_after_s"] == 12.2


async def test_no_answer_holds_a_secret(api) -> None:
    texts = [(await api.deploy(secrets={"KEY": "s3cret-value"})).text]
    api.engine.finish("web")
    for path in ("/status", "/v1/deployments", "/v1/events", "/metrics", "/v1/enclaves"):
        texts.append((await api.ask("GET", path)).text)
    texts.append(
        (await api.ask("PUT", "/v1/deployments/web/secrets", json={"KEY": "s3cret-value"})).text
    )
    assert "s3cret-value" not in "".join(texts)
    assert isinstance(api.engine, FakeEngine)
