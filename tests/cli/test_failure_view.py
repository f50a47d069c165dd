"""What failed, told once: its own words, what serves, what to type, and a console that stays."""

from __future__ import annotations

import json
import re
import stat
import tarfile
from pathlib import Path

import pytest

from agent.cli.exits import Exit
from agent.cli.failure import words
from agent.cli.redaction import MASK, redacted, redacted_text
from agent.model.ended_console import EndedConsole
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.revision import Fault
from agent.wire.views import FaultView

SAID = "HTTP 503: model not loaded"
FAULT = Fault(
    code="probe_failed",
    detail=SAID,
    step="verify",
    probe="https /health",
    response=SAID,
    console_tail="boot stage containers failed\nCUDA out of memory\n",
)


def fault(**members: str | None) -> FaultView:
    base = {"code": "x", "detail": None, "step": None, "probe": None, "console_tail": None}
    return FaultView(**base | members)


@pytest.mark.parametrize(
    ("view", "text"),
    [
        (fault(detail=SAID, response=SAID, probe="https /"), f"x: https /: {SAID}"),
        (
            fault(detail=f"not in time: {SAID}", response=SAID, probe="https /"),
            f"x: not in time: {SAID} (https /)",
        ),
        (
            fault(detail="not in time", response=SAID, probe="https /"),
            f"x: not in time; {SAID} (https /)",
        ),
        (fault(detail="its VM is gone"), "x: its VM is gone"),
        (fault(probe="tcp 80"), "x: tcp 80"),
        (fault(), "x"),
    ],
)
def test_a_probes_answer_is_told_once_with_its_name(view: FaultView, text: str) -> None:
    assert words(view) == text


def failed(agent) -> None:
    agent.running()
    agent.call("relaunch", "web", "--tag", "v2")
    agent.api.do(lambda engine: [engine.advance("web"), engine.fail("web", FAULT)])


def test_each_page_tells_the_failure_once_with_what_serves_and_what_to_do(agent) -> None:
    failed(agent)
    for arguments in (("status", "web"), ("update", "status", "web")):
        text = agent.call(*arguments).stdout
        assert text.count("model not loaded") == 1
        assert f"in step verify, probe_failed: https /health: {SAID}" in text
        assert text.count("v1.0.0 serves on, nothing changed") == 1
        assert "enclave-agent logs web --previous" in text
        assert "enclave-agent update retry web" in text
        assert "  CUDA out of memory" in text
    text = agent.call("status").stdout
    assert text.count("model not loaded") == 1
    assert f"https /health: {SAID}; v1.0.0 serves on, nothing changed" in text
    waited = agent.call("update", "status", "web", "--wait")
    assert waited.exit_code == Exit.FAILED
    assert waited.output.count("model not loaded") == 1
    assert "  v1.0.0 serves on, nothing changed\n" in waited.stderr


def test_the_api_says_the_same(agent) -> None:
    failed(agent)
    update = json.loads(agent.call("update", "status", "web", "-o", "json").stdout)
    assert (update["error"]["probe"], update["error"]["response"]) == ("https /health", SAID)
    assert update["serves"] == "v1.0.0 serves on, nothing changed"
    assert update["next_steps"][0]["command"] == "enclave-agent logs web --previous"
    (event,) = [
        one
        for one in json.loads(agent.call("update", "list", "web", "-o", "json").stdout)["updates"]
        if one["status"] == "completed"
    ]
    assert (event["serves"], event["next_steps"]) == (None, [])


def test_what_was_called_off_says_what_serves(agent) -> None:
    agent.running()
    agent.call("relaunch", "web", "--tag", "v2")
    agent.call("update", "cancel", "web")
    assert "v1.0.0 serves on, nothing changed" in agent.call("status", "web").stdout
    waited = agent.call("update", "status", "web", "--wait")
    assert "v1.0.0 serves on, nothing changed" in waited.stderr


def keep(agent, name: str = "web", enclave: str = "abcdefgh", slot: str = "green") -> None:
    one = EndedConsole(
        enclave=EnclaveId(enclave),
        deployment=DeploymentName(name),
        slot=slot,
        revision=2,
        tag="v2",
        ended_at=1767225600.0,
        bytes=9,
    )

    def put(engine) -> None:
        engine.ended.insert(0, one)
        engine.consoles[enclave] = f"one\nI am {enclave}\x1b[2J\n".encode()

    agent.api.do(put)


def test_the_console_of_one_that_is_gone_is_read_after_stop_and_delete(agent) -> None:
    agent.running()
    none = agent.call("logs", "web", "--previous")
    assert (none.exit_code, "no console of web is kept" in none.stderr) == (Exit.FAILED, True)
    keep(agent)
    keep(agent, enclave="bbbbbbbb", slot="blue")
    shown = agent.call("logs", "web", "--previous", "--tail", "1")
    assert shown.stdout == "I am bbbbbbbb\\x1b[2J\n"
    assert (
        "enclave bbbbbbbb (blue, v2, revision 2), last heard 2026-01-01 00:00:00Z (1 h ago)"
        in (shown.stderr)
    )
    assert "I am abcdefgh" in agent.call("logs", "web", "-p", "--slot", "green").stdout
    agent.call("stop", "web", "--wait")
    stopped = agent.call("logs", "web")
    assert (stopped.exit_code, "I am bbbbbbbb" in stopped.stdout) == (0, True)
    agent.call("delete", "web", "--wait")
    assert "I am bbbbbbbb" in agent.call("logs", "web", "--previous").stdout
    assert agent.call("logs", "web").exit_code == Exit.UNKNOWN_NAME
    assert agent.call("logs", "web", "--previous", "--follow").exit_code == Exit.USAGE


SECRETS = [
    "ghp_" + "a1" * 18,
    "AKIA" + "ABCDEFGH12345678",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQ\n-----END PRIVATE KEY-----",
    "https://user:hunter2pass@registry.example/",
    "Authorization: Bearer abcdefgh12345678",
    "password=correct-horse",
    'api_key: "battery-staple"',
]


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_credential_is_masked_wherever_it_stands(text: str) -> None:
    said = redacted_text(f"before {text} after")
    assert MASK in said
    assert said.startswith("before ")
    for part in re.findall(
        r"[A-Za-z0-9]{12,}|hunter2pass|correct-horse|battery-staple|MIIEvQ", text
    ):
        if part not in ("Authorization",):
            assert part not in said, said


@pytest.mark.parametrize(
    "text",
    ["sha256:" + "ab" * 32, "0000:18:00.0", "secret API_KEY", "token 12", "/etc/secret: /x/y"],
)
def test_what_somebody_needs_to_help_stays(text: str) -> None:
    assert redacted_text(text) == text


def test_variables_and_what_guests_said_are_left_out() -> None:
    value = {
        "variables": {"MODE": "fast"},
        "error": {"console_tail": "secret words", "detail": "no"},
        "enclaves": [{"guest_metrics": {"a": 1}, "address": "10.0.0.1"}],
    }
    assert redacted(value) == {
        "variables": {"MODE": MASK},
        "error": {"console_tail": MASK, "detail": "no"},
        "enclaves": [{"guest_metrics": MASK, "address": "10.0.0.1"}],
    }


@pytest.fixture
def few_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = {"host/uname.txt": ("uname", "-a"), "host/none.txt": ("/nonexistent/x",)}
    monkeypatch.setattr("agent.cli.support_bundle._COMMANDS", commands)
    monkeypatch.setattr("agent.cli.support_bundle._doctor", lambda: [{"what": "config"}])


def bundle(agent, path: Path, *more: str) -> dict[str, str]:
    result = agent.call("support-bundle", "--file", str(path), *more)
    assert result.exit_code == 0, result.output
    with tarfile.open(path) as file:
        members = [one for one in file.getmembers() if one.isfile()]
        return {
            one.name.partition("/")[2]: file.extractfile(one).read().decode() for one in members
        }


@pytest.mark.usefixtures("few_commands")
def test_a_support_bundle_is_one_redacted_file(agent, tmp_path: Path) -> None:
    agent.running("web", "--variable", "MODE=very-particular")
    agent.call("secrets", "set", "web", "KEY=-", stdin="s3cret-value")
    keep(agent)
    path = tmp_path / "bundle.tar.gz"
    parts = bundle(agent, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(parts["deployments.json"])["deployments"][0]["variables"] == {"MODE": MASK}
    assert json.loads(parts["events.json"])["events"]
    assert {"status.json", "updates/web.json", "secrets/web.json", "doctor.json"} <= parts.keys()
    assert "No such file" in parts["host/none.txt"]
    whole = "\n".join(parts.values())
    assert "s3cret-value" not in whole
    assert "very-particular" not in whole
    assert "I am abcdefgh" not in whole
    again = agent.call("support-bundle", "--file", str(path))
    assert (again.exit_code, "is there already" in again.stderr) == (Exit.USAGE, True)
    with_consoles = bundle(agent, tmp_path / "more.tar.gz", "--consoles")
    assert "I am abcdefgh" in with_consoles["consoles/web-abcdefgh.txt"]


@pytest.mark.usefixtures("few_commands")
def test_a_support_bundle_is_made_without_an_agent(agent, tmp_path: Path) -> None:
    agent.api.stop()
    result = agent.call("support-bundle", "--file", str(tmp_path / "b.tar.gz"), "-o", "json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0
    assert {"status.json", "events.json"} <= set(told["lacking"])
    assert "host/uname.txt" in set(told["parts"]) - set(told["lacking"])
    agent.api.start()
