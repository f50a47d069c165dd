"""Every exit code, as the shell sees it and as the runner does."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli import VERBS, cli
from agent.cli.client import failure_of
from agent.cli.exits import Exit
from agent.model.revision import Fault
from agent.store.port import StoreError

SECRET = "s3cret-value"


def test_done(agent) -> None:
    done = agent.process("status")
    assert (done.returncode, done.stderr) == (0, "")


def test_failed_by_the_agent(agent) -> None:
    def break_it(engine) -> None:
        engine.raises = StoreError("database is locked")

    agent.api.do(break_it)
    done = agent.process("drain")
    assert done.returncode == Exit.FAILED
    assert "database is locked" in done.stderr


def test_usage_wrong_option(agent) -> None:
    assert agent.process("status", "--nonsense").returncode == Exit.USAGE
    assert agent.process("nonsense").returncode == Exit.USAGE
    assert agent.call("deploy", "web", "--tag", "v1").exit_code == Exit.USAGE


def test_usage_wrong_value_is_told_by_the_agent_with_its_field(agent) -> None:
    done = agent.process("deploy", "web", "--tag", "v1", "--listen", "localhost:80")
    assert done.returncode == Exit.USAGE
    assert done.stderr == "error: listen: 'localhost' is not an IP address\n"


def test_refused_with_reasons_on_stderr(agent) -> None:
    agent.deploy()
    done = agent.process("relaunch", "web", "--tag", "v2")
    assert (done.returncode, done.stdout) == (Exit.REFUSED, "")
    assert done.stderr.startswith("refused: update_in_progress: update ")


def test_a_conflict_is_a_refusal_too(agent) -> None:
    agent.running()
    done = agent.process("update", "cancel", "web")
    assert (done.returncode, done.stderr) == (
        Exit.REFUSED,
        "refused: no_update: no update of web is running\n",
    )


@pytest.mark.parametrize("name", ["nope", "..", "", "a/b", "A B", "x" * 100_000, "a\nb"])
def test_no_such_name(agent, name: str) -> None:
    for verb in (("status",), ("stop",), ("update", "status"), ("logs",)):
        done = agent.call(*verb, name)
        assert done.exit_code == Exit.UNKNOWN_NAME, (verb, done.output)
        assert len(done.stderr) < 500


def test_not_reachable_without_an_agent(short_dir: Path) -> None:
    path = short_dir / "none.sock"
    for made in (False, True):
        if made:
            left = socket.socket(socket.AF_UNIX)
            left.bind(str(path))
            left.close()
        result = CliRunner().invoke(cli, ["--socket", str(path), "status"])
        assert result.exit_code == Exit.UNREACHABLE
        assert f"no agent listens on {path}" in result.stderr
        assert "is it running?" in result.stderr


def test_not_reachable_when_the_connection_breaks(short_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(short_dir / "a.sock"))
        server.listen()

        def hang_up() -> None:
            accepted, _ = server.accept()
            accepted.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        result = CliRunner().invoke(cli, ["--socket", str(short_dir / "a.sock"), "status"])
        thread.join()
    assert result.exit_code == Exit.UNREACHABLE
    assert "broke" in result.stderr


def test_a_path_that_no_socket_can_have_is_not_reachable() -> None:
    result = CliRunner().invoke(cli, ["--socket", "/tmp/" + "x" * 200, "status"])
    assert result.exit_code == Exit.UNREACHABLE


def test_not_reachable_while_it_starts(agent) -> None:
    def unready(engine) -> None:
        engine.ready = False
        engine.publish()

    agent.api.do(unready)
    assert agent.call("drain").exit_code == Exit.UNREACHABLE
    shown = agent.call("status")
    assert (shown.exit_code, "starting: adopting enclaves" in shown.stdout) == (0, True)


def test_timed_out_waiting(agent) -> None:
    agent.deploy()
    done = agent.process("update", "status", "web", "--wait", "--timeout", "0.1")
    assert done.returncode == Exit.TIMED_OUT
    assert "web: still pending, prepare, after" in done.stderr
    assert "enclave-agent update status web --wait" in done.stderr


def test_attesting_what_claims_nothing_fails_with_a_sentence(agent) -> None:
    agent.running()
    result = agent.call("attest", "web")
    assert (result.exit_code, "tee: none" in result.stderr) == (Exit.FAILED, True)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (400, "bad_request", Exit.USAGE),
        (403, "forbidden", Exit.FAILED),
        (404, "not_found", Exit.UNKNOWN_NAME),
        (404, "unknown_path", Exit.FAILED),
        (409, "exists", Exit.REFUSED),
        (410, "pruned", Exit.FAILED),
        (413, "too_large", Exit.USAGE),
        (422, "idempotency_key_reused", Exit.FAILED),
        (500, "internal", Exit.FAILED),
        (501, "not_on_this_host", Exit.FAILED),
        (503, "starting", Exit.UNREACHABLE),
        (503, "disk_full", Exit.FAILED),
    ],
)
def test_each_status_has_its_exit_code(status: int, code: str, expected: Exit) -> None:
    from agent.api.problems import problem

    assert failure_of(status, problem(status, code, "a sentence").body).exit_code == expected


def test_an_answer_that_is_no_problem_is_a_failure() -> None:
    assert failure_of(502, b"<html>").exit_code == Exit.FAILED


def test_every_verb_says_what_its_line_in_the_help_says() -> None:
    context = cli.make_context("enclave-agent", [], resilient_parsing=True)
    for name, (_, _, text) in VERBS.items():
        command = cli.get_command(context, name)
        assert command is not None
        if not command.hidden:
            assert (command.help or "").split("\n")[0] == text, name
        assert bool(text) is not command.hidden


def test_every_verb_explains_itself() -> None:
    for name in VERBS:
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0, name


def test_help_and_a_status_load_nothing_heavy() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from agent.cli import cli;"
        "CliRunner().invoke(cli, ['--help']);"
        "CliRunner().invoke(cli, ['--socket', '/nonexistent', 'status', '-o', 'json']);"
        "print([m for m in ('aiohttp', 'asyncio', 'rich', 'yaml', 'agent.api', 'agent.daemon')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"


def test_a_failed_update_says_why_to_the_last_line_of_the_console(agent) -> None:
    agent.deploy()
    with agent.popen("update", "status", "web", "--wait") as process:
        fault = Fault(
            code="never_healthy",
            detail="no probe passed in time",
            step="verify",
            probe="https /health",
            response="HTTP 503: \x1b[31mno",
            console_tail="line 1\r\nkernel panic\x1b[2J\n",
        )
        agent.api.do(lambda engine: engine.fail("web", fault))
        out, err = process.communicate(timeout=60)
    assert process.returncode == Exit.FAILED
    assert out.splitlines()[-1].endswith("failed, prepare")
    assert err.splitlines() == [
        "error: web: update to v1.0.0 failed in verify",
        r"  never_healthy: no probe passed in time; HTTP 503: \x1b[31mno (https /health)",
        "  nothing serves: there was no version before it",
        "  next: enclave-agent logs web --previous     all that its guest printed",
        "        enclave-agent update retry web        the same again, once the cause is mended",
        "        enclave-agent relaunch web --tag TAG  another release",
        "  console:",
        "    line 1",
        r"    kernel panic\x1b[2J",
    ]
