"""What each verb asks of the agent, and what it says afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
from pathlib import Path

import click
import msgspec
import pytest
from click.testing import CliRunner

from agent.cli.exits import Exit
from agent.cli.overlap import news
from agent.cli.text import duration, safe, safe_lines
from agent.model.revision import ProbeOptions

SECRET = "s3cret-value"


def revision(agent, name: str = "web"):
    return agent.api.do(lambda engine: engine._entries[name].revisions[-1])


def rest(process) -> tuple[str, str]:
    """What it still says, after some of it was read line by line."""
    out, err = process.stdout.read(), process.stderr.read()
    process.wait(60)
    return out, err


def test_deploy_sends_everything(agent, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{SECRET}\n")
    result = agent.call(
        *("deploy", "web", "--tag", "v1.0.0", "--listen", "127.0.0.1:8443"),
        *("--publish", "127.0.0.1:9000:8080", "--domain", "web.example", "--repo", "org/web"),
        *("--variable", "A=1=2", "--variable", "B=", "--secret", f"KEY=@{tmp_path}/key"),
        *(
            "--secret",
            "OTHER=-",
            "--staging",
            "--probe-path",
            "/ready",
            "--probe-host",
            "w.example",
        ),
        stdin="from stdin",
    )
    assert result.exit_code == 0, result.output
    made = revision(agent)
    assert made.repo == "org/web"
    assert made.variables == {"A": "1=2", "B": ""}
    assert str(made.publish[0].listen) == "127.0.0.1:9000"
    assert made.domain == "web.example"
    assert made.probes == ProbeOptions(path="/ready", host="w.example")
    assert agent.api.engine.values == {"KEY": SECRET, "OTHER": "from stdin"}
    assert result.stdout.startswith("web: update ")
    assert result.stdout.endswith(" to v1.0.0 admitted (fresh, revision 1)\n")
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("secrets", "text"),
    [
        ([f"KEY={SECRET}"], "secret KEY: its value must not be an argument"),
        ([SECRET], "a secret must be K=@FILE or K=-"),
        (["KEY=@/nonexistent"], "secret KEY: /nonexistent: No such file or directory"),
        (["A=-", "B=-"], "secrets A and B: stdin can be only one of them"),
        (["KEY=-", "KEY=-"], "secret KEY: is given twice"),
        (["1KEY=-"], "secret '1KEY': must be a letter"),
    ],
)
def test_a_secret_that_cannot_be_is_told_without_its_value(
    agent, secrets: list[str], text: str
) -> None:
    agent.running()
    result = agent.call("secrets", "set", "web", *secrets)
    assert result.exit_code == Exit.USAGE
    assert text in result.stderr
    assert SECRET not in result.output


@pytest.mark.parametrize(
    ("data", "text"), [(b"\xff\xfe", "is not UTF-8 text"), (b"x" * 70_000, "is over 64 KiB")]
)
def test_a_secret_that_is_no_text_or_too_long_is_told(agent, data: bytes, text: str) -> None:
    agent.running()
    result = agent.call("secrets", "set", "web", "KEY=-", stdin=data)
    assert (result.exit_code, text in result.stderr) == (Exit.USAGE, True)


@pytest.mark.parametrize(
    ("data", "value"), [("a\n", "a"), ("a\r\n", "a"), ("a\n\n", "a\n"), ("a", "a")]
)
def test_one_line_end_of_a_secret_is_cut(agent, data: str, value: str) -> None:
    agent.running()
    assert agent.call("secrets", "set", "web", "KEY=-", stdin=data).exit_code == 0
    assert agent.api.engine.values["KEY"] == value


@pytest.mark.parametrize("data", ["", "\n", "null", "null\n"])
def test_a_secret_that_a_guest_takes_as_missing_is_refused_by_its_name(agent, data: str) -> None:
    agent.running()
    result = agent.call("secrets", "set", "web", "KEY=-", stdin=data)
    assert result.exit_code == Exit.USAGE
    assert "secret KEY: must not be empty or the text null" in result.stderr
    assert "KEY" not in (agent.api.engine.values or {})


def test_new_secrets_say_that_they_wait_for_a_relaunch(agent) -> None:
    agent.running()
    result = agent.call("secrets", "set", "web", "KEY=-", stdin=SECRET)
    assert "web: KEY recorded" in result.stdout
    assert "enclave-agent relaunch web" in result.stdout
    assert SECRET not in result.output


def test_relaunch_keeps_what_is_not_said(agent) -> None:
    agent.running("web", "--variable", "A=1")
    assert agent.call("relaunch", "web", "--variable", "B=2", "--strategy", "stop_then_start")
    made = revision(agent)
    assert (made.tag, made.variables) == ("v1.0.0", {"A": "1", "B": "2"})
    update = agent.api.do(lambda engine: engine.snapshot.deployments["web"].update)
    assert update.strategy == "stop_then_start"


def test_relaunch_keeps_changes_and_removes_how_the_workload_is_asked(agent) -> None:
    agent.running("web", "--probe-path", "/ready", "--probe-host", "w.example")
    for arguments, wanted in (
        ((), ProbeOptions(path="/ready", host="w.example")),
        (("--probe-path", "/up"), ProbeOptions(path="/up", host="w.example")),
        (("--probe-host", ""), ProbeOptions(path="/up")),
        (("--probe-path", ""), ProbeOptions()),
    ):
        result = agent.call("relaunch", "web", "--tag", "v2", *arguments)
        assert result.exit_code == 0, result.output
        assert revision(agent).probes == wanted
        agent.api.do(lambda engine: engine.finish("web"))


def test_a_wrong_probe_path_is_told_by_its_field(agent) -> None:
    result = agent.call(
        "deploy", "web", "--tag", "v1", "--listen", "127.0.0.1:1", "--probe-path", "/v1/*"
    )
    assert result.exit_code == Exit.USAGE
    assert "probes.path" in result.stderr


def test_a_dry_run_asks_with_the_probes_and_shows_the_warnings(agent) -> None:
    from agent.model.reasons import AskedProbes, DecidedStrategy, Decision

    agent.running()
    probes = AskedProbes(
        path="/up",
        host=None,
        asked_path="/up",
        asked_host="api.example",
        healthy_when="2xx or 3xx",
    )
    warnings = ("its containers decide",)
    told = Decision(strategy=DecidedStrategy.BLUE_GREEN, warnings=warnings, probes=probes)
    agent.api.do(lambda engine: setattr(engine, "answer_to_plan", told))
    result = agent.call("relaunch", "web", "--probe-path", "/up", "--dry-run")
    (asked,) = agent.api.engine.planned
    assert (asked.probes.path, asked.probes.host) == ("/up", msgspec.UNSET)
    for words in ("its containers decide", "/up of api.example", "2xx or 3xx"):
        assert words in result.stdout


def test_what_the_update_warns_of_is_told_at_once(agent) -> None:
    from agent.cli.client import Client
    from agent.cli.waiting import follow_up
    from agent.wire.views import DeploymentView

    agent.running()
    client = Client(agent.api.path)
    update = client.read("/v1/deployments/web", DeploymentView).update
    told = msgspec.structs.replace(update, warnings=["its containers decide\x1b[2J"])

    @click.command()
    def command() -> None:
        follow_up(client, told, wait=False, timeout_s=None)

    result = CliRunner().invoke(command)
    assert result.stderr.startswith("warning: its containers decide")
    assert "\x1b" not in result.stderr


def test_a_dry_run_changes_nothing(agent) -> None:
    agent.running()
    result = agent.call("relaunch", "web", "--tag", "v2", "--dry-run")
    assert (result.exit_code, "blue_green" in result.stdout) == (0, True)
    assert [what for what, _ in agent.api.engine.calls] == ["deploy"]


def test_a_dry_run_asks_with_the_names_of_what_would_be_given(agent, tmp_path) -> None:
    agent.running()
    (tmp_path / "key").write_text("s3cret")
    given = ("--secret", f"KEY=@{tmp_path / 'key'}", "--variable", "COLOUR=green")
    assert agent.call("relaunch", "web", "--tag", "v2", *given, "--dry-run").exit_code == 0
    (asked,) = agent.api.engine.planned
    assert (asked.variables, asked.secrets) == (("COLOUR",), ("KEY",))
    assert "s3cret" not in repr(asked)


def test_a_plan_that_refuses_exits_as_refused(agent) -> None:
    from agent.model.reasons import DecidedStrategy, Decision, Reason, ReasonCode

    reason = Reason(
        code=ReasonCode.MEMORY_INSUFFICIENT, detail="too little", needed=2, available=1
    )
    refused = Decision(strategy=DecidedStrategy.REFUSE, reasons=(reason,), retry_after_s=30.0)
    agent.api.do(lambda engine: setattr(engine, "answer_to_plan", refused))
    result = agent.call("plan", "web", "--tag", "v1")
    assert result.exit_code == Exit.REFUSED
    assert result.stderr.splitlines() == [
        "refused: memory_insufficient: too little (needed 2, available 1)",
        "  try again in 30 s",
    ]
    shown = agent.call("plan", "web", "--tag", "v1", "-o", "json")
    assert json.loads(shown.stdout)["strategy"] == "refuse"


def test_a_plan_says_how_many_boots_with_a_certificate_are_left(agent) -> None:
    from agent.model.reasons import DecidedStrategy, Decision

    planned = Decision(strategy=DecidedStrategy.BLUE_GREEN, certificate_boots_left=2)
    agent.running()
    agent.api.do(lambda engine: setattr(engine, "answer_to_plan", planned))
    result = agent.call("plan", "web", "--tag", "v2")
    assert "2 this week, each asks for a certificate" in result.stdout
    shown = agent.call("plan", "web", "--tag", "v2", "-o", "json")
    assert json.loads(shown.stdout)["certificate_boots_left"] == 2


@pytest.mark.parametrize("to", ["v1.0.0", "1", None])
def test_rollback_by_tag_by_number_or_to_the_one_before(agent, to: str | None) -> None:
    agent.running()
    agent.call("relaunch", "web", "--tag", "v2")
    agent.api.do(lambda engine: engine.finish("web"))
    result = agent.call("rollback", "web", *(("--to", to) if to else ()))
    assert (result.exit_code, "to v1.0.0 admitted" in result.stdout) == (0, True), result.output


def test_rollback_says_where_it_would_go_and_changes_nothing(agent) -> None:
    agent.running()
    agent.call("relaunch", "web", "--tag", "v2")
    agent.api.do(lambda engine: engine.finish("web"))
    result = agent.call("rollback", "web", "--list")
    assert result.exit_code == 0, result.output
    assert "→  v1.0.0       1    cold" in result.stdout
    assert "web serves v2, revision 2: `rollback web` goes to v1.0.0, revision 1" in result.stdout
    listed = json.loads(agent.call("rollback", "web", "--list", "-o", "json").stdout)
    assert [(one["tag"], one["default"]) for one in listed] == [("v1.0.0", True)]
    for options in (("--list", "--to", "v1.0.0"), ("--list", "--wait")):
        assert agent.call("rollback", "web", *options).exit_code == 2
    assert json.loads(agent.call("status", "web", "-o", "json").stdout)["tag"] == "v2"


def test_accept_cancel_and_retry(agent) -> None:
    agent.deploy("web", "--staging")

    def to_accept(engine) -> None:
        while engine.snapshot.deployments["web"].update.step != "accept":
            engine.advance("web")

    agent.api.do(to_accept)
    assert "accepted" in agent.call("update", "accept", "web").stdout
    agent.api.do(lambda engine: engine.finish("web"))
    agent.call("relaunch", "web", "--tag", "v2")
    assert "is being cancelled" in agent.call("update", "cancel", "web").stdout
    assert agent.call("update", "retry", "web").exit_code == Exit.REFUSED


def test_stop_start_and_delete(agent) -> None:
    agent.running()
    assert agent.call("stop", "web", "--wait").stdout == "web is stopped\n"
    assert agent.call("start", "web").exit_code == 0
    agent.api.do(lambda engine: engine.finish("web"))
    assert agent.call("delete", "web", "--wait").stdout == "web is deleted\n"
    assert agent.call("status", "web").exit_code == Exit.UNKNOWN_NAME


def test_drain_and_undrain(agent) -> None:
    assert agent.call("drain").exit_code == 0
    refused = agent.call("deploy", "web", "--tag", "v1", "--listen", "127.0.0.1:1")
    assert refused.stderr == "refused: host_draining: the host is draining\n"
    assert agent.call("undrain").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("status", "-o", "json"),
        ("status", "web", "-o", "json"),
        ("update", "status", "web", "-o", "json"),
        ("capacity", "-o", "json"),
        ("plan", "web", "-o", "json"),
    ],
)
def test_every_reading_verb_speaks_json(agent, arguments: tuple[str, ...]) -> None:
    agent.running()
    result = agent.call(*arguments)
    assert result.exit_code == 0, result.output
    assert isinstance(json.loads(result.stdout), dict)


def test_logs_of_the_serving_slot_and_of_another(agent) -> None:
    agent.running()
    agent.call("relaunch", "web", "--tag", "v2")

    def print_something(engine) -> None:
        engine.advance("web")
        for facts in engine.snapshot.deployments["web"].enclaves:
            engine.consoles[facts.row.id] = f"I am {facts.row.slot}\nbye\x1b[0m\n".encode()

    agent.api.do(print_something)
    assert agent.call("logs", "web").stdout == "I am blue\nbye\\x1b[0m\n"
    green = ("--slot", "green", "--tail", "1")
    assert agent.call("logs", "web", *green).stdout == "bye\\x1b[0m\n"
    assert agent.call("logs", "web", *green, "--raw").stdout == "bye\x1b[0m\n"


def test_an_image_that_prints_nothing_is_told_to_have_no_console(agent) -> None:
    agent.running()

    def print_nothing(engine) -> None:
        for facts in engine.snapshot.deployments["web"].enclaves:
            engine.consoles[facts.row.id] = b""

    agent.api.do(print_nothing)
    result = agent.call("logs", "web")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "production images have no console" in result.stderr


def test_logs_of_what_is_gone_are_the_end_that_was_kept(agent) -> None:
    from agent.model.revision import Fault

    agent.deploy()
    assert agent.call("logs", "web").exit_code == Exit.FAILED
    fault = Fault(code="x", detail="y", console_tail="last words\n")
    agent.api.do(lambda engine: engine.fail("web", fault))
    assert agent.call("logs", "web").stdout == "last words\n"
    assert agent.call("logs", "web", "--slot", "blue").exit_code == Exit.FAILED


def test_followed_logs_go_on_and_end_with_the_enclave(agent) -> None:
    agent.running()
    enclave = agent.api.do(lambda engine: engine.snapshot.deployments["web"].enclaves[0].row.id)

    def say(text: bytes) -> None:
        agent.api.do(lambda engine: engine.consoles.__setitem__(enclave, text))

    say(b"one\n")
    with agent.popen("logs", "web", "--follow") as process:
        assert process.stdout.readline() == "one\n"
        say(b"one\ntwo\n")
        assert process.stdout.readline() == "two\n"
        agent.api.do(lambda engine: engine.consoles.clear())
        out, err = rest(process)
    assert (process.returncode, out, err) == (0, "", "the enclave is gone\n")


@pytest.mark.parametrize(
    ("seen", "now", "fresh"),
    [
        ("", "abc", "abc"),
        ("abc", "abc", ""),
        ("abc", "abcdef", "def"),
        ("abcdef", "cdefgh", "gh"),
        ("x" * 100, "x" * 100, ""),
        ("a" * 60 + "b" * 40, "b" * 40 + "c" * 60, "c" * 60),
        ("one\ntwo\n", "o\nthree\n", "three\n"),
        ("abc", "xyz", None),
    ],
)
def test_what_is_new_in_a_log_seen_through_a_window(
    seen: str, now: str, fresh: str | None
) -> None:
    assert news(seen, now) == fresh


def test_events_are_lines_and_their_chain_is_verified(agent) -> None:
    agent.running()
    result = agent.call("events", "--verify")
    assert result.exit_code == 0
    assert "prepare -> launch" in result.stdout
    assert result.stderr.startswith("the chain holds from event 1 to ")
    rows = json.loads(agent.call("events", "-o", "json").stdout)["events"]
    lines = agent.call("events", "-o", "jsonl").stdout.splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert [row["sequence"] for row in rows] == list(range(1, len(rows) + 1))


def test_a_forged_event_and_a_missing_one_are_found(agent) -> None:
    agent.running()
    agent.api.do(lambda engine: engine.change_event(3, reason="nothing to see"))
    result = agent.call("events", "--verify")
    assert (result.exit_code, "event 3 is not what was recorded" in result.stderr) == (1, True)
    agent.api.do(lambda engine: engine.drop_event(3))
    result = agent.call("events", "--verify")
    assert (result.exit_code, "broken before event 4" in result.stderr) == (1, True)


def test_what_was_pruned_is_said_and_the_rest_verified(agent) -> None:
    agent.running()
    agent.api.do(lambda engine: engine.prune_events(3))
    result = agent.call("events", "--verify")
    assert result.exit_code == 0
    assert "events before 3 are pruned" in result.stderr
    assert "the chain holds from event 3" in result.stderr


def test_followed_events_go_on_over_a_restart_of_the_agent(agent) -> None:
    agent.deploy()
    with agent.popen("events", "--follow", "-o", "json") as process:
        assert json.loads(process.stdout.readline())["sequence"] == 1
        agent.api.do(lambda engine: engine.advance("web"))
        assert json.loads(process.stdout.readline())["sequence"] == 2
        agent.api.stop()
        agent.api.engine.advance("web")
        agent.api.start()
        line = process.stdout.readline()
        assert line, process.stderr.read()
        assert json.loads(line)["sequence"] == 3
        process.kill()


def test_waiting_tells_a_story_in_lines(agent) -> None:
    agent.deploy()
    with agent.popen("update", "status", "web", "--wait") as process:
        lines = [process.stdout.readline()]
        for _ in range(5):
            agent.api.do(lambda engine: engine.advance("web"))
            lines.append(process.stdout.readline())
        out, err = rest(process)
    told = [line[11:].strip() for line in lines]
    assert told == [
        "pending, prepare",
        "pending, launch",
        "started, boot; 3 of 7 stages, at certificate; 0/2 probes",
        "started, verify; 1/2 probes; http 2/2, containers 1/2",
        "ready, switch",
        "completed, switch",
    ]
    assert (process.returncode, err) == (0, "")
    assert out.splitlines() == [
        "guest: tinfoilsh/cvmimage 0.12.0",
        f"runs: web, not told; registry.test/web@sha256:{'1' * 64}",
        "web is on v1.0.0, revision 1",
    ]


def test_waiting_survives_a_restart_of_the_agent(agent) -> None:
    agent.deploy()
    with agent.popen("update", "status", "web", "--wait") as process:
        assert "pending, prepare" in process.stdout.readline()
        agent.api.stop()
        assert "the agent is away" in process.stdout.readline()
        agent.api.engine.finish("web")
        agent.api.start()
        out, _ = rest(process)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "web is on v1.0.0, revision 1"


def test_an_interrupted_wait_says_that_the_update_goes_on(agent) -> None:
    agent.deploy()
    with agent.popen("update", "status", "web", "--wait") as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = rest(process)
    assert process.returncode == Exit.INTERRUPTED
    assert "the update goes on: enclave-agent update status web --wait" in err


def test_on_a_terminal_a_wait_is_a_picture(agent) -> None:
    agent.deploy()
    agent.api.do(lambda engine: engine.advance("web"))
    ours, theirs = pty.openpty()
    environ = {"TERM": "xterm", "COLUMNS": "100", "LINES": "40", "NO_COLOR": ""}
    process = agent.popen("update", "status", "web", "--wait", terminal=theirs, environ=environ)
    os.close(theirs)
    seen = ""
    while "launch" not in seen:
        seen += os.read(ours, 65536).decode()
    agent.api.do(lambda engine: engine.finish("web"))
    with contextlib.suppress(OSError):  # a terminal whose other end is closed reads as an error
        while piece := os.read(ours, 65536):
            seen += piece.decode()
    os.close(ours)
    process.stderr.close()
    assert process.wait(60) == 0
    assert "\u25cf" in seen
    assert "\u2713" in seen
    assert "web is on v1.0.0, revision 1" in seen


@pytest.mark.parametrize("more", [("-o", "json"), ()])
def test_a_watched_status_is_shown_again_at_each_change(agent, more: tuple[str, ...]) -> None:
    with agent.popen("status", "--watch", *more) as process:
        first = process.stdout.readline()
        assert "host-1" in first
        agent.deploy()
        while "web" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        rest(process)
    assert process.returncode == Exit.INTERRUPTED


def test_what_clients_felt_of_an_update_is_told(agent) -> None:
    agent.running()
    agent.call("relaunch", "web", "--tag", "v2")
    agent.api.do(lambda engine: engine.finish("web"))
    result = agent.call("update", "status", "web", "--wait")
    assert result.stdout.splitlines()[-1] == "web is on v2, revision 2: no downtime"

    def cost(engine) -> None:
        update = engine.snapshot.deployments["web"].update
        engine.put("web", msgspec.structs.replace(update, downtime_s=12.3, reset_connections=2))

    agent.api.do(cost)
    result = agent.call("update", "status", "web", "--wait")
    assert result.stdout.splitlines()[-1].endswith(": downtime 12 s, 2 connections reset")


def test_waiting_for_a_staged_update_ends_where_a_person_decides(agent) -> None:
    agent.deploy("web", "--staging")

    def to_accept(engine) -> None:
        while engine.snapshot.deployments["web"].update.step != "accept":
            engine.advance("web")

    agent.api.do(to_accept)
    result = agent.call("update", "status", "web", "--wait")
    assert result.exit_code == 0
    assert "enclave-agent update accept web" in result.stdout


def test_waiting_for_what_is_cancelled_or_deleted_fails(agent) -> None:
    agent.running()
    agent.call("relaunch", "web", "--tag", "v2")
    agent.call("update", "cancel", "web")
    result = agent.call("update", "status", "web", "--wait")
    assert (result.exit_code, "was cancelled" in result.stderr) == (Exit.FAILED, True)
    with agent.popen("relaunch", "web", "--tag", "v3", "--wait") as process:
        assert "prepare" in process.stdout.readline()
        agent.call("delete", "web")
        _, err = rest(process)
    assert (process.returncode, err) == (Exit.FAILED, "error: web was deleted meanwhile\n")


def test_an_older_update_is_waited_for_though_a_newer_one_runs(agent) -> None:
    from agent.cli.client import Client
    from agent.cli.waiting import wait_for_update
    from agent.wire.views import UpdateView

    agent.deploy()
    client = Client(agent.api.path)
    first = client.read("/v1/deployments/web/updates/current", UpdateView)
    agent.api.do(lambda engine: engine.finish("web"))
    agent.call("relaunch", "web", "--tag", "v2")
    wait_for_update(client, first, 10)


def test_an_answer_of_a_newer_agent_with_more_members_is_read() -> None:
    from agent.wire.host_views import HealthView

    assert msgspec.json.decode(b'{"ready": true, "reasons": [], "new": 1}', type=HealthView).ready


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (86400 * 4 + 3600 * 3, "4 d 3 h"),
        (-3, "0.0 s"),
    ],
)
def test_durations_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_no_text_of_others_steers_the_terminal() -> None:
    assert safe("a\x1b[2J\nb") == r"a\x1b[2J\nb"
    assert safe("naïve ✓") == "naïve ✓"
    assert safe_lines("a\r\n\tb\x07\x9b\n") == "a\n\tb\\x07\\x9b\n"
