"""What the API can, the command line can: every option, answers and errors for programs, too."""

from __future__ import annotations

import json
import os
import pty
from pathlib import Path

import msgspec
import pytest

from agent.cli.exits import Exit
from agent.model.reasons import Strategy

SECRET = "s3cret-value"


def revision(agent, name: str = "web"):
    return agent.api.do(lambda engine: engine._entries[name].revisions[-1])


def relaunched(agent, *arguments: str):
    result = agent.call("relaunch", "web", *arguments)
    assert result.exit_code == 0, result.output
    update = agent.api.do(lambda engine: engine.snapshot.deployments["web"].update)
    agent.api.do(lambda engine: engine.finish("web"))
    return revision(agent), update


def test_relaunch_changes_listeners_and_domain_and_takes_them_away(agent) -> None:
    agent.running("web", "--domain", "a.example", "--publish", "127.0.0.1:9001:8080")
    made, _ = relaunched(agent, "--listen", "[::1]:8444", "--publish", "127.0.0.1:9002:8081")
    assert (str(made.listen), made.domain) == ("[::1]:8444", "a.example")
    assert [str(one.listen) for one in made.publish] == ["127.0.0.1:9002"]
    made, _ = relaunched(agent, "--domain", "b.example")
    assert made.domain == "b.example"
    made, _ = relaunched(agent, "--domain", "", "--publish", "")
    assert (made.domain, made.publish) == (None, ())


def test_relaunch_takes_variables_and_secrets_away(agent) -> None:
    agent.running("web", "--variable", "A=1", "--variable", "B=2")
    agent.call("secrets", "set", "web", "KEY=-", stdin=SECRET)
    made, _ = relaunched(agent, "--unset-variable", "A", "--unset-secret", "KEY")
    assert (made.variables, made.secrets) == ({"B": "2"}, {})
    result = agent.call("relaunch", "web", "--variable", "B=1", "--unset-variable", "B")
    assert result.exit_code == Exit.USAGE
    assert "B: is given and unset at once" in result.stderr


def test_relaunch_says_what_happens_to_the_old_version(agent) -> None:
    from agent.cli.relaunch import request

    names = ("tag", "listen", "domain", "probe_path", "probe_host")
    nothing = dict.fromkeys((*names, "strategy", "revert", "debug", "lease"))
    nothing |= dict.fromkeys(("publish", "variables", "secrets", "no_variables", "no_secrets"), ())
    nothing["accept_moved_tag"] = False
    body = request(**nothing | {"staging": False, "restart_old": False})
    assert json.loads(msgspec.json.encode(body)) == {
        "staging": False,
        "restart_old_on_failure": False,
        "lease": None,
    }
    told = request(
        **nothing
        | {"staging": True, "restart_old": True, "revert": False, "strategy": "stop_then_start"}
        | {"accept_moved_tag": True}
    )
    assert (told.restart_old_on_failure, told.revert_after_switch) == (True, False)
    assert told.accept_moved_tag is True
    assert told.strategy is Strategy.STOP_THEN_START


def test_a_dry_run_asks_with_all_that_would_change(agent) -> None:
    agent.running()
    result = agent.call(
        *("relaunch", "web", "--dry-run", "--listen", "127.0.0.1:1", "--domain", "x.example"),
        *("--publish", "", "--unset-variable", "A", "--unset-secret", "KEY"),
    )
    assert result.exit_code == 0, result.output
    (asked,) = agent.api.engine.planned
    assert (str(asked.listen), asked.domain, asked.publish) == ("127.0.0.1:1", "x.example", ())
    assert (asked.unset_variables, asked.unset_secrets) == (("A",), ("KEY",))


def test_secrets_are_listed_and_forgotten_never_shown(agent) -> None:
    agent.running()
    assert agent.call("secrets", "list", "web").stdout == "web has no secrets\n"
    agent.call("secrets", "set", "web", "API_KEY=-", stdin=SECRET)
    shown = agent.call("secrets", "list", "web").stdout
    assert shown.splitlines()[1].split()[:3] == ["API_KEY", "version", "1"]
    assert "recorded: a relaunch gives it" in shown
    (row,) = json.loads(agent.call("secrets", "list", "web", "-o", "json").stdout)["secrets"]
    assert (row["name"], row["version"], row["given"]) == ("API_KEY", 1, None)
    wrong = agent.call("secrets", "unset", "web", "API_KYE")
    assert (wrong.exit_code, "did you mean API_KEY?" in wrong.stderr) == (Exit.UNKNOWN_NAME, True)
    gone = agent.call("secrets", "unset", "web", "API_KEY")
    assert gone.stdout == "web: API_KEY forgotten\n"
    assert agent.call("secrets", "list", "web").stdout == "web has no secrets\n"
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("relaunch", "web", "--tag", "v2"), "id"),
        (("stop", "web"), "deployment"),
        (("delete", "web"), "deployment"),
        (("drain",), "draining"),
        (("secrets", "set", "web", "KEY=-"), "stale_secrets"),
        (("images", "prune"), "images"),
        (("coordinator-epoch", "reset"), "forgotten"),
        (("deploy", "other", "--tag", "v1", "--listen", "127.0.0.1:9"), "id"),
    ],
)
def test_a_change_answers_programs_in_json(agent, arguments: tuple[str, ...], key: str) -> None:
    agent.running()
    for form in ("json", "jsonl"):
        result = agent.call(*arguments, "-o", form, stdin=SECRET)
        if result.exit_code == 0:
            assert key in json.loads(result.stdout)
            assert (form == "jsonl") is (len(result.stdout.splitlines()) == 1)
        else:  # the second time it is refused, or gone
            assert "error" in json.loads(result.stderr)


def test_a_wait_in_json_ends_with_the_update(agent) -> None:
    agent.deploy()
    with agent.popen("update", "status", "web", "--wait", "-o", "json") as process:
        assert "pending, prepare" in process.stderr.readline()
        agent.api.do(lambda engine: engine.finish("web"))
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, json.loads(out)["status"]) == (0, "completed")


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (("status", "wbe", "-o", "json"), "not_found", Exit.UNKNOWN_NAME),
        (("update", "cancel", "web", "-ojson"), "no_update", Exit.REFUSED),
        (("relaunch", "web", "--output", "jsonl", "--listen", "x"), "bad_request", Exit.USAGE),
        (("status", "--nonsense", "--output=json"), "usage", Exit.USAGE),
        (("nonsense", "-o", "json"), "usage", Exit.USAGE),
        (("deploy", "web", "--tag", "v", "-ojson", "--listen", "127.0.0.1:1"), "exists", 3),
    ],
)
def test_an_error_is_json_where_json_was_asked_for(
    agent, arguments: tuple[str, ...], code: str, exit_code: int
) -> None:
    agent.running()
    result = agent.call(*arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["exit_code"]) == (code, exit_code)
    assert error["message"]


def test_a_refusal_for_programs_keeps_its_reasons(agent) -> None:
    agent.call("drain")
    result = agent.call("deploy", "web", "--tag", "v1", "--listen", "127.0.0.1:1", "-o", "json")
    error = json.loads(result.stderr)["error"]
    assert [reason["code"] for reason in error["reasons"]] == ["host_draining"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("status", "wbe"), "did you mean web?"),
        (("stop", "WEB"), "did you mean web?"),
        (("plan", "wbe", "--tag", "v1"), None),
        (("logs", "zzzzz"), "deployments: api, web"),
        (("stauts",), "'start', 'status'"),
        (("update", "cancle", "web"), "Did you mean 'cancel'"),
        (("status", "--wacth"), "Did you mean '--watch'"),
    ],
)
def test_a_near_miss_is_told_what_was_meant(
    agent, arguments: tuple[str, ...], text: str | None
) -> None:
    agent.running()
    agent.running("api", port=9000)
    result = agent.call(*arguments)
    if text is not None:
        assert result.exit_code in (Exit.UNKNOWN_NAME, Exit.USAGE)
        assert text in result.stderr


def test_a_host_without_deployments_says_so_to_who_asks_for_one(agent) -> None:
    assert "there are no deployments" in agent.call("status", "web").stderr


def asked(agent, *arguments: str, answer: str = "") -> tuple[int, str]:
    """Run on a terminal that types this; what it shows."""
    ours, theirs = pty.openpty()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - it becomes the command line
        os.login_tty(theirs)
        environ = {**os.environ, "ENCLAVE_AGENT_SOCKET": str(agent.api.path), "NO_COLOR": "1"}
        python = os.environ.get("PYTHON", "") or __import__("sys").executable
        os.execve(python, [python, "-m", "agent", *arguments], environ)
    os.close(theirs)
    seen = b""
    typed = False
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # a terminal whose other end is closed reads as an error
            break
        if not piece:
            break
        seen += piece
        if answer and not typed and b"[y/N]" in seen:
            os.write(ours, answer.encode())
            typed = True
    _, status = os.waitpid(pid, 0)
    os.close(ours)
    return os.waitstatus_to_exitcode(status), seen.decode()


def test_what_cannot_be_taken_back_is_asked_on_a_terminal(agent) -> None:
    agent.running()
    code, seen = asked(agent, "stop", "web", answer="n\n")
    assert code == Exit.FAILED
    assert "stop web? v1.0.0 serves on 127.0.0.1:8443, 0 connections open." in seen
    assert "nothing was changed" in seen
    code, seen = asked(agent, "delete", "web", answer="\x04")  # the end of the input is no yes
    assert (code, "nothing was changed" in seen) == (Exit.FAILED, True)
    assert agent.call("status", "web").exit_code == 0
    code, seen = asked(agent, "delete", "web", answer="y\n")
    assert (code, "web is being deleted" in seen) == (0, True)


def test_who_says_yes_or_is_no_terminal_is_not_asked(agent) -> None:
    agent.running()
    code, seen = asked(agent, "stop", "web", "--yes")
    assert (code, "[y/N]" in seen) == (0, False)
    assert agent.call("delete", "web").stdout == "web is being deleted\n"


def test_short_bdfs_and_beginnings_of_ids_are_enough(agent) -> None:
    from tests.cli.test_gpus_verb import populate

    populate(agent)
    assert agent.call("gpus", "release", "3a:00.0").stdout == "0000:3a:00.0 is free\n"
    assert agent.call("gpus", "recover", "3A:00").exit_code == 0
    near = agent.call("gpus", "release", "3b:00.0")
    assert (near.exit_code, "did you mean 0000:3a:00.0" in near.stderr) == (4, True), near.stderr
    agent.running()
    enclave = agent.api.do(lambda engine: engine.snapshot.deployments["web"].enclaves[0].row.id)
    agent.api.do(lambda engine: engine.consoles.__setitem__(enclave, b"here\n"))
    assert agent.call("logs", enclave[:4]).stdout == "here\n"
    update = agent.api.do(lambda engine: engine.snapshot.deployments["web"].update.id)
    shown = json.loads(
        agent.call("update", "status", "web", "--id", update[:6], "-o", "json").stdout
    )
    assert shown["id"] == update
    assert agent.call("update", "status", "web", "--id", "zzz").exit_code == Exit.UNKNOWN_NAME


def test_a_beginning_that_means_two_is_refused_with_both() -> None:
    from agent.cli.exits import Failure
    from agent.cli.names import whole_id

    assert whole_id("abd", ["abc", "abd"], "updates") == "abd"
    with pytest.raises(Failure, match="may be one of abc, abd: say more of it"):
        whole_id("ab", ["abc", "abd"], "updates")


def test_events_of_a_time_a_deployment_and_the_last_of_them(agent) -> None:
    agent.running("web")
    agent.running("api", port=9000)

    def sequences(*arguments: str) -> list[int]:
        result = agent.call("events", *arguments, "-o", "jsonl")
        assert result.exit_code == 0, result.output
        return [json.loads(line)["sequence"] for line in result.stdout.splitlines()]

    every = sequences()
    of_api = sequences("--deployment", "api")
    assert of_api == every[6:]
    assert sequences("--deployment", "api", "--tail", "2") == of_api[-2:]
    assert sequences("--tail", "0") == []
    assert sequences("--since", "2026-01-01T00:00:04Z") == every[4:]
    assert sequences("--since", "2026-01-01 00:00:04") == every[4:]
    assert sequences("--since", "1h") == every  # an hour after its start, as these tests have it
    assert sequences("--since", "59m") == []
    wrong = agent.call("events", "--since", "yesterday")
    assert (wrong.exit_code, "--since 'yesterday'" in wrong.stderr) == (Exit.USAGE, True)
    verified = agent.call("events", "--deployment", "api", "--tail", "1", "--verify")
    assert f"the chain holds from event 1 to {every[-1]}" in verified.stderr
    assert len(verified.stdout.splitlines()) == 2


def test_followed_events_begin_with_the_last_under_a_header(agent) -> None:
    agent.running("web")
    with agent.popen("events", "--follow", "--tail", "1", "--deployment", "web") as process:
        assert process.stdout.readline().split()[:3] == ["SEQ", "TIME", "KIND"]
        assert process.stdout.readline().split()[0] == "6"
        agent.running("api", port=9000)
        agent.call("relaunch", "web", "--tag", "v2")
        line = process.stdout.readline()
        assert line.split()[4:5] == ["web"], line
        process.kill()
        process.communicate(timeout=60)


def complete(agent, words: str) -> list[str]:
    with agent.popen(
        environ={
            "_ENCLAVE_AGENT_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split())),
        }
    ) as process:
        out, err = process.communicate(timeout=60)
    assert err == ""
    return [line.partition(",")[2] for line in out.splitlines() if line]


def test_names_are_completed_from_the_agent(agent, tmp_path: Path) -> None:
    agent.running("web")
    agent.running("api", port=9000)
    assert complete(agent, "enclave-agent status ") == ["api", "web"]
    nobody = f"enclave-agent --socket {tmp_path}/none status "
    assert complete(agent, nobody) == []
    script = agent.call("completion", "bash").stdout
    assert "_ENCLAVE_AGENT_COMPLETE=bash_complete" in script


def test_a_variable_of_no_use_is_warned_of_and_what_is_missing_told_together() -> None:
    from agent.updates.admission.secret_names import unread_variables

    assert unread_variables(["COLOUR", "DOMAIN"], ["COLOUR"]) == ()
    (warning,) = unread_variables(["COLOR"], ["COLOUR", "SIZE"])
    assert "variable COLOR" in warning
    assert "did you mean COLOUR?" in warning
    (warning,) = unread_variables(["ZZZ"], ["COLOUR", "SIZE"])
    assert "it names: COLOUR, SIZE" in warning


def test_capacity_is_promised_spent_and_given_back(agent) -> None:
    size = ("--memory-mib", "256", "--vcpus", "1")
    granted = agent.call("lease", "grant", *size, "--ttl", "60", "-o", "json")
    assert granted.exit_code == 0, granted.output
    lease = json.loads(granted.stdout)["id"]
    shown = agent.call("lease", "show", lease).stdout
    assert shown.startswith(f"lease {lease}: 256 MiB, 1 vCPUs (fresh), until ")
    assert agent.call("lease", "release", lease).stdout == f"lease {lease} is given back\n"
    assert agent.call("lease", "show", lease).exit_code == Exit.UNKNOWN_NAME
    for wrong in ((), ("web", *size), ("--vcpus", "1")):
        assert agent.call("lease", "grant", *wrong).exit_code == Exit.USAGE
    told = agent.call(
        *("deploy", "web", "--tag", "v1", "--listen", "127.0.0.1:1", "--lease", "not an id")
    )
    assert (told.exit_code, "lease:" in told.stderr) == (Exit.USAGE, True)
