"""How the workload is asked: kept, changed and removed with the revision, and told in the plan."""

from __future__ import annotations

import msgspec
import pytest

from agent.api.views import deployment_view
from agent.model.ids import DeploymentName
from agent.model.resources import Listen, Publish
from agent.model.revision import ProbeOptions, Revision
from agent.model.shim import ShimRules
from agent.model.update import UpdateStatus
from agent.probes.port import ProbeTarget
from agent.store.rows import decode, encode
from agent.updates.errors import FieldError
from agent.updates.orders import FORGET_PROBES, Change, PlanQuestion, ProbesChange
from simulator.instant_host import CALLER, InstantHost, Make, new
from simulator.rows import revision
from simulator.simulated_host import release

NAME = DeploymentName("web")
READY = ProbeOptions(path="/ready", host="w.example:8443")


def offer(host: InstantHost, tag: str, rules: ShimRules, **members: object) -> None:
    made = msgspec.structs.replace(release(tag), shim=rules, **members)
    host.releases.made[tag] = made


async def deployed(host: InstantHost, **options: object) -> Revision:
    await host.finish(await host.engine.deploy(new(NAME, "v1", **options), CALLER))
    return serving(host)


def serving(host: InstantHost) -> Revision:
    found = host.engine.snapshot.deployments[NAME].revision
    assert found is not None
    return found


async def test_what_is_not_said_is_kept_and_null_removes(make: Make) -> None:
    host = await make()
    assert (await deployed(host, probes=READY)).probes == READY
    for change, wanted in (
        (Change(tag="v2"), READY),
        (Change(probes=ProbesChange(path="/up")), ProbeOptions(path="/up", host=READY.host)),
        (Change(probes=ProbesChange(host=None)), ProbeOptions(path="/up")),
        (Change(probes=FORGET_PROBES), ProbeOptions()),
    ):
        await host.finish(await host.engine.update(NAME, change, CALLER))
        assert serving(host).probes == wanted
    assert serving(host).health_path == "/health"


async def test_a_retry_and_a_rollback_ask_as_their_revision_did(make: Make) -> None:
    host = await make()
    await deployed(host, probes=READY)
    host.releases.broken.add("v2")
    change = Change(tag="v2", probes=ProbesChange(path="/up"))
    failed = await host.finish(await host.engine.update(NAME, change, CALLER))
    assert failed.status is UpdateStatus.FAILED
    host.releases.broken.clear()
    await host.finish(await host.engine.retry(NAME, CALLER))
    assert (serving(host).tag, serving(host).health_path) == ("v2", "/up")
    await host.finish(await host.engine.rollback(NAME, "v1", CALLER))
    assert (serving(host).tag, serving(host).probes) == ("v1", READY)


async def test_a_restart_of_the_agent_asks_as_before(make: Make) -> None:
    host = await make()
    await deployed(host, probes=READY)
    await host.restart()
    assert serving(host).probes == READY


async def test_a_path_that_never_reaches_the_workload_is_refused_by_name(make: Make) -> None:
    host = await make()
    offer(host, "v1", ShimRules(paths=("/v1/*", "/health")))
    for path in ("/ready", "/.well-known/tinfoil-boot-stages"):
        wrong = new(NAME, "v1", probes=ProbeOptions(path=path))
        with pytest.raises(FieldError) as refused:
            await host.engine.deploy(wrong, CALLER)
        assert refused.value.path == "probes.path"
        assert "/v1/*, /health" in str(refused.value)
    good = new(NAME, "v1", probes=ProbeOptions(path="/v1/models?x=1"))
    await host.finish(await host.engine.deploy(good, CALLER))


async def test_a_kept_path_that_another_release_does_not_let_through_is_refused(
    make: Make,
) -> None:
    host = await make()
    await deployed(host, probes=READY)
    offer(host, "v2", ShimRules(paths=("/health",)))
    with pytest.raises(FieldError) as refused:
        await host.engine.update(NAME, Change(tag="v2"), CALLER)
    assert refused.value.path == "probes.path"
    forgotten = Change(tag="v2", probes=FORGET_PROBES)
    await host.finish(await host.engine.update(NAME, forgotten, CALLER))
    assert serving(host).health_path == "/health"


async def test_a_plan_and_the_status_say_when_no_path_can_be_asked(make: Make) -> None:
    host = await make()
    await deployed(host, domain="web.example.org")
    rules = ShimRules(paths=("/v1/*", "/x"), guarded=("/x",))
    offer(host, "v2", rules, container_names=("app",))
    blind = await host.engine.plan(PlanQuestion(deployment=NAME, tag="v2"))
    (told,) = blind.warnings
    assert "its containers decide whether it is Ready" in told
    assert not blind.refused
    assert blind.probes is not None
    assert (blind.probes.asked_path, blind.probes.asked_host) == (None, "web.example.org")
    assert blind.probes.healthy_when == "its containers decide whether it is Ready"
    named = PlanQuestion(deployment=NAME, tag="v2", probes=ProbesChange(path="/v1/up"))
    planned = await host.engine.plan(named)
    assert (planned.warnings, planned.probes and planned.probes.healthy_when) == ((), "2xx or 3xx")
    guarded = PlanQuestion(deployment=NAME, tag="v2", probes=ProbesChange(path="/x"))
    (told_of_key,) = (await host.engine.plan(guarded)).warnings
    assert "wants a key for /x" in told_of_key

    update = await host.update(NAME, "v2")
    assert update.warnings == (told,)
    facts = host.engine.snapshot.deployments[NAME]
    shown = deployment_view(facts, host.clock.now())
    assert shown.warnings == [told]
    assert shown.probes is not None
    assert shown.probes.asked_path is None
    await host.until(NAME, lambda facts: facts.next_update.warnings == (told,))


async def test_only_what_is_published_needs_a_listener(make: Make) -> None:
    """Ports that the config opens in the guest's firewall alone need none."""
    host = await make()
    seen: list[ProbeTarget] = []
    watch = host.probes.watch

    def note(target: ProbeTarget) -> None:
        seen.append(target)
        watch(target)

    host.probes.watch = note  # type: ignore[method-assign]
    offer(host, "v1", ShimRules(), inbound_ports=(2222, 80, 8080))
    listen = [Listen(address="127.0.0.1", port=port) for port in (9000, 9001)]
    publish = tuple(Publish(listen=one, guest_port=8080) for one in listen)
    await deployed(host, publish=publish, domain="app.example", probes=ProbeOptions(path="/up"))
    assert [check.guest_port for check in seen[-1].tcp] == [8080]
    assert (seen[-1].health_path, seen[-1].path_named) == ("/up", True)
    assert seen[-1].host == "app.example"


async def test_the_host_that_was_named_goes_before_the_domain(make: Make) -> None:
    host = await make()
    made = await deployed(host, domain="app.example", probes=READY)
    assert made.probe_host == "w.example:8443"


def test_a_row_of_before_is_probed_as_it_was() -> None:
    fields = msgspec.json.decode(encode(revision(health_path="/health")))
    for name in ("probes", "health_guarded"):
        fields.pop(name, None)
    read = decode(msgspec.json.encode(fields), Revision)
    assert (read.health_path, read.probes, read.probe_host) == ("/health", ProbeOptions(), None)
