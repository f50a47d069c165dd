"""The pages of the command line, held to golden files: what a person reads at 3 a.m.

`UPDATE_GOLDEN=1` writes them anew; read the difference before you keep it.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import msgspec
import pytest

from agent.enclaves.port import Teardown, VmPhase
from agent.model.egress import EgressFacts, GuestEgress, Refusal
from agent.model.enclave import EnclaveState
from agent.model.revision import Fault
from agent.updates.snapshot.snapshot import Problem

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"


def hold(name: str, text: str, agent) -> None:
    """Compare with the golden file, ids made the same every time."""

    def ids(engine) -> dict[str, str]:
        facts = engine.snapshot.deployments.values()
        found: dict[str, str] = {}
        for one in facts:
            for n, update in enumerate(engine._entries[one.row.name].updates):
                found[update.id] = f"update-{one.row.name}-{n}"[:16].ljust(16, "x")
            for enclave in one.enclaves:
                found[enclave.row.id] = f"{one.row.name}{enclave.row.slot}"[:8].ljust(8, "x")
        return found

    for real, fixed in agent.api.do(ids).items():
        text = text.replace(real, fixed)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def page(agent, *arguments: str) -> str:
    result = agent.call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def populate(agent) -> None:
    """One that runs, one in the middle of an update with stale secrets, one that failed."""
    agent.running("web")
    listen = ("--publish", "127.0.0.1:9001:8080", "--domain", "api.example")
    asked = ("--probe-path", "/ready")
    agent.deploy("api", *listen, *asked, "--variable", "MODE=fast", port=9000)
    agent.api.do(lambda engine: engine.finish("api"))
    agent.call("relaunch", "api", "--tag", "v1.1.0")
    agent.call("secrets", "set", "api", "API_KEY=-", stdin="s3cret-value")
    agent.deploy("broken", port=9100)

    def arrange(engine) -> None:
        engine.advance("api")
        engine.advance("api")
        engine.fail(
            "broken",
            Fault(
                code="never_healthy",
                detail="http: 503 for 60 s",
                step="verify",
                probe="https /health",
                response='HTTP 503: {"error": "model not loaded"}',
                console_tail="loading model\nout of memory\x1b[0m\n",
            ),
        )
        engine.problems = (
            Problem(
                code="swap_on",
                severity="warning",
                detail="secrets could reach a disk",
                mend="swapoff -a",
                since=engine.started_at,
            ),
        )
        engine.publish()

    agent.api.do(arrange)


def test_the_page_of_an_empty_host(agent) -> None:
    hold("status-empty", page(agent, "status"), agent)


def test_the_page_of_a_busy_host(agent) -> None:
    populate(agent)
    text = page(agent, "status")
    assert "s3cret-value" not in text
    hold("status-busy", text, agent)


@pytest.mark.parametrize("name", ["web", "api", "broken"])
def test_the_page_of_a_deployment(agent, name: str) -> None:
    populate(agent)
    text = page(agent, "status", name)
    assert "s3cret-value" not in text
    assert "\x1b" not in text
    hold(f"status-{name}", text, agent)


def test_the_page_of_capacity(agent) -> None:
    populate(agent)
    hold("capacity", page(agent, "capacity"), agent)


def test_the_page_of_events(agent) -> None:
    populate(agent)
    hold("events", page(agent, "events"), agent)


def test_a_simulated_host_says_so(agent) -> None:
    def simulate(engine) -> None:
        engine.simulated = True
        engine.publish()

    agent.api.do(simulate)
    assert "SIMULATED — NOT CONFIDENTIAL" in page(agent, "status")


def test_a_draining_host_says_so(agent) -> None:
    agent.call("drain")
    assert "draining: admits nothing new" in page(agent, "status")


def drawn(picture: object, width: int) -> str:
    """As text, on a terminal of that width."""
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(picture)
    return console.export_text()


def test_the_picture_of_a_wait_shows_steps_stages_and_probes(agent) -> None:
    from agent.cli.client import Client
    from agent.cli.progress import drawing
    from agent.wire.views import DeploymentView

    populate(agent)
    one = Client(agent.api.path).read("/v1/deployments/api", DeploymentView)
    still = msgspec.structs.replace(one.update.progress, deadline_at=None)
    update = msgspec.structs.replace(one.update, progress=still)
    shown = drawn(drawing(update, one, 12.0, "the agent is away"), width=80)
    text = "".join(f"{line.rstrip()}\n" for line in shown.splitlines())
    hold("waiting", text, agent)


def test_nothing_that_a_guest_says_reaches_the_terminal_raw(agent) -> None:
    agent.running()

    def poison(engine) -> None:
        facts = engine.snapshot.deployments["web"].enclaves[0]
        probe = msgspec.structs.replace(facts.health.probes[0], name="x\x1b[2J", last="[red]\x07")
        stages = {"stages": [{"name": "[bold]\x1b]0;owned\x07", "status": 5}, "odd", None]}
        health = msgspec.structs.replace(facts.health, probes=(probe,), boot_stages=stages)
        engine.set_facts("web", facts.row.id, health=health)

    agent.api.do(poison)
    agent.call("relaunch", "web", "--tag", "v2")
    for arguments in (("status",), ("status", "web"), ("update", "status", "web")):
        text = page(agent, *arguments)
        assert "\x1b" not in text
        assert "\x07" not in text


def test_the_end_of_an_enclave_is_shown_phase_by_phase(agent) -> None:
    agent.running()

    def stop(engine) -> None:
        facts = engine.snapshot.deployments["web"].enclaves[0]
        vm = msgspec.structs.replace(facts.vm, phase=VmPhase.STOPPING, teardown=Teardown.QEMU_GONE)
        engine.set_facts("web", facts.row.id, vm=vm, state=EnclaveState.STOPPING)

    agent.api.do(stop)
    assert "stopping (qemu_gone)" in page(agent, "status", "web")


def test_what_is_asked_in_vain_is_a_warning_told_once(agent) -> None:
    from agent.cli.client import Client
    from agent.cli.detail import detail
    from agent.wire.views import DeploymentView, ProbeView

    populate(agent)
    told = "its containers decide whether it is Ready"
    one = Client(agent.api.path).read("/v1/deployments/api", DeploymentView)
    vain = ProbeView(name="https /ready", passing=0, needed=2, last="HTTP 401", unknown=True)
    progress = msgspec.structs.replace(one.update.progress, probes=[vain])
    one = msgspec.structs.replace(
        one,
        warnings=[told],
        next_update=msgspec.structs.replace(one.next_update, warnings=[told]),
        update=msgspec.structs.replace(one.update, progress=progress, warnings=[told]),
    )
    text = drawn(detail(one), width=120)
    assert text.count(told) == 1
    assert "https /ready unknown  last: HTTP 401" in text


def test_containers_that_are_only_acted_out_are_shown_as_played(agent) -> None:
    agent.running()
    assert "played" not in page(agent, "status", "web")

    def play(engine) -> None:
        facts = engine.snapshot.deployments["web"].enclaves[0]
        running = {"status": "running", "health": {"status": "healthy"}}
        rows = [
            {"name": "acted\x1b", "played": True, **running},
            {"name": "real", "image": "localhost/real@sha256:" + "a" * 64, **running},
            "odd",
        ]
        stages = {"guest": "reference guest\x1b of ours", "stages": []}
        health = msgspec.structs.replace(
            facts.health, containers={"containers": rows}, boot_stages=stages
        )
        engine.set_facts("web", facts.row.id, health=health)

    agent.api.do(play)
    text = page(agent, "status", "web")
    (line,) = [line for line in text.splitlines() if "played" in line]
    assert "acted" in line
    assert "real" not in line
    assert "\x1b" not in text
    (real,) = [line for line in text.splitlines() if "localhost/real@" in line]
    assert "reference guest of ours" in real
    assert "running, healthy" in real
    assert "acted (played), real" in page(agent, "status")


def test_what_guests_may_reach_and_what_they_tried_most_is_shown(agent) -> None:
    def close(engine) -> None:
        refused = Refusal(destination="10.1.2.3", protocol="tcp", port=443, count=7)
        engine.egress = EgressFacts(
            mode=GuestEgress.NONE, why="configured", allow=("10.0.0.0/8:80",), refused=(refused,)
        )
        engine.publish()

    agent.api.do(close)
    shown = page(agent, "status")
    assert "guests reach" in shown
    assert "none, 10.0.0.0/8:80; refused most: 10.1.2.3:443 (tcp, 7 times)" in shown


def test_what_limits_refused_is_shown_by_their_keys(agent) -> None:
    agent.running("web")
    assert "limits." not in page(agent, "status", "web")

    def refuse(engine) -> None:
        engine.refused = {"guest_flows": 3}
        engine.publish()

    agent.api.do(refuse)
    assert "3 by limits.guest_flows" in page(agent, "status", "web")
