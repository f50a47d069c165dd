"""What works without an agent: the configuration, the look at the host, where the socket is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli import cli
from agent.cli.exits import Exit


def invoke(*arguments: str, **more: object):
    environ = {name: None for name in os.environ if name.startswith("ENCLAVE_AGENT_")}
    return CliRunner(env=environ, catch_exceptions=False).invoke(cli, arguments, **more)


def test_a_good_configuration_is_good(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("tee: none\nallow_unattested: true\n")
    result = invoke("check-config", str(path))
    assert (result.exit_code, result.stdout) == (0, f"{path}: good\n")


def test_every_problem_of_a_configuration_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("nonsense: 1\nreserve: {vcpus: many}\n")
    result = invoke("check-config", str(path))
    assert (result.exit_code, result.stdout) == (Exit.USAGE, "")
    lines = result.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == ["nonsense", "reserve.vcpus"]


def test_a_configuration_that_is_not_there_is_a_line() -> None:
    result = invoke("check-config", "/nonexistent/agent.yaml")
    assert result.exit_code == Exit.USAGE
    assert result.stderr == "/nonexistent/agent.yaml: No such file or directory\n"


def test_the_socket_comes_from_the_configuration(tmp_path: Path, short_dir: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text(f"run_dir: {short_dir}\ntee: none\nallow_unattested: true\n")
    result = invoke("--config", str(path), "status")
    assert result.exit_code == Exit.UNREACHABLE
    assert f"{short_dir}/agent.sock" in result.stderr


def test_a_wrong_configuration_ends_a_command_with_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("nonsense: 1\n")
    result = invoke("--config", str(path), "status")
    assert result.exit_code == Exit.USAGE
    assert "nonsense" in result.stderr


def test_the_daemon_ends_with_usage_for_a_wrong_configuration(tmp_path: Path) -> None:
    path = tmp_path / "agent.yaml"
    path.write_text("nonsense: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "agent", "--config", str(path), "run"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == Exit.USAGE
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr


def doctor(*arguments: str, tools: Path | None = None, config: str = "") -> tuple[int, dict]:
    base = Path(arguments[0]) if arguments else Path()
    path = base / "agent.yaml"
    path.write_text(f"tee: none\nallow_unattested: true\n{config}")
    environ = {**os.environ, **({"PATH": str(tools)} if tools else {})}
    done = subprocess.run(
        [sys.executable, "-m", "agent", "--config", str(path), "doctor", "--here", "-o", "json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environ,
    )
    return done.returncode, {line["what"]: line for line in json.loads(done.stdout)}


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_a_host_without_qemu_cannot_run_anything_and_the_mend_is_told(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    code, lines = doctor(str(tmp_path), tools=tmp_path / "bin")
    assert code == Exit.FAILED
    assert lines["qemu"]["state"] == "error"
    assert "apt-get install" in lines["qemu"]["mend"]


def test_what_the_tools_say_is_told(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    tool(tools, "qemu-system-x86_64", "echo QEMU emulator version 99.1; echo more")
    source = tmp_path / "releases"
    source.mkdir()
    config = f"releases: {{source: {source}}}\nrun_dir: /dev/shm/run\nstate_dir: {tmp_path}/s\n"
    code, lines = doctor(str(tmp_path), tools=tools, config=config)
    assert code == 0
    assert lines["qemu"]["detail"].startswith("QEMU emulator version 99.1 (")
    assert lines["run_dir"]["state"] == "ok"
    assert lines["releases"]["state"] == "ok"


@pytest.mark.parametrize(("place", "state"), [("/dev/shm", "ok"), ("/usr", "warn")])
def test_a_run_dir_on_a_disk_is_warned_of_with_where_secrets_go(
    tmp_path: Path, place: str, state: str
) -> None:
    if state == "warn" and os.geteuid() != 0:
        state = "error"  # it may not be written either
    _, lines = doctor(str(tmp_path), config=f"run_dir: {place}/enclave-agent-doctor\n")
    assert lines["run_dir"]["state"] == state
    if state == "warn":
        assert "secrets go to /dev/shm/enclave-agent-0-" in lines["run_dir"]["detail"]
        assert "tmpfs" in lines["run_dir"]["mend"]


def test_what_the_agent_could_not_write_or_listen_on_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    listens = (
        "import socket; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", listens], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        port = other.stdout.readline().strip()
        code, lines = doctor(
            str(tmp_path),
            config=f"state_dir: {tmp_path}/file/state\nlisten: {{status: '127.0.0.1:{port}'}}\n",
        )
        other.communicate("\n")
    assert code == Exit.FAILED
    assert (lines["state_dir"]["state"], lines["ports"]["state"]) == ("error", "error")
    assert f"127.0.0.1:{port} (listen.status) is taken by" in lines["ports"]["detail"]


def test_a_source_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    code, lines = doctor(str(tmp_path), config="releases: {source: 'https://127.0.0.1:1'}\n")
    assert (code, lines["releases"]["state"]) == (Exit.FAILED, "error")
    assert "cannot be reached" in lines["releases"]["detail"]


def test_every_row_of_its_table_is_whole(tmp_path: Path) -> None:
    result = invoke("doctor", "--here")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["WHAT", "STATE", "FOUND"]
    found = lines[0].index("FOUND")
    assert all(line[:found].split()[1:] and line[found:].strip() for line in lines[1:])


def test_where_secrets_are_kept_is_told(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    _, lines = doctor(str(tmp_path), tools=tools)
    assert lines["secrets"]["state"] == "ok"
    assert "in memory only" in lines["secrets"]["detail"]
    wanted = "secrets: {at_rest: systemd_creds}\n"
    _, lines = doctor(str(tmp_path), tools=tools, config=wanted)
    assert lines["secrets"]["state"] == "error"
    assert "systemd-creds is not there" in lines["secrets"]["detail"]
    assert "at_rest: off" in lines["secrets"]["mend"]
    tool(tools, "systemd-creds", "echo systemd 252; exit 1")
    _, lines = doctor(str(tmp_path), tools=tools, config=wanted)
    if os.geteuid() == 0:
        assert lines["secrets"]["detail"].startswith("systemd 252: kept at rest")
        assert "no TPM" in lines["secrets"]["detail"]
    else:
        assert lines["secrets"]["state"] == "warn"


def test_a_release_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    code, lines = doctor(str(tmp_path), config="releases: {source: /nonexistent}\n")
    assert (code, lines["releases"]["state"]) == (Exit.FAILED, "error")
    mirrors = "releases: {source: 'https://r.example', image_sources: [/nonexistent]}\n"
    code, lines = doctor(str(tmp_path), config=mirrors)
    assert (code, lines["releases"]["state"]) == (Exit.FAILED, "error")
    assert lines["releases"]["mend"] == "set releases.image_sources"


def test_a_simulated_tee_is_warned_of_and_wants_a_firmware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCLAVE_AGENT_TEE", "simulated")
    shelf = tmp_path / "firmware"
    shelf.mkdir()
    config = f"qemu: {{firmware_dir: {shelf}}}\n"
    _, lines = doctor(str(tmp_path), config=config)
    assert lines["tee"]["state"] == "warn"
    assert lines["tee"]["detail"].startswith("SIMULATED — NOT CONFIDENTIAL")
    assert (lines["firmware"]["state"], "fetch-firmware" in lines["firmware"]["mend"]) == (
        "warn",
        True,
    )
    (shelf / "OVMF.fd").write_bytes(b"a firmware")
    assert doctor(str(tmp_path), config=config)[1]["firmware"]["state"] == "ok"


@pytest.mark.parametrize("output", ["table", "json"])
def test_the_doctor_of_this_very_host_finishes(output: str) -> None:
    result = invoke("doctor", "--here", "-o", output)
    assert result.exit_code in {0, Exit.FAILED}
    assert "memory" in result.stdout


def test_the_version_is_told() -> None:
    assert invoke("--version").stdout.startswith("enclave-agent, version ")


@pytest.mark.parametrize(
    ("network", "state", "said"),
    [
        ("mode: user", "warn", "nothing is held on a user-mode network"),
        ("mode: user, guest_egress: none", "ok", "QEMU opens no connection for guests"),
        ("mode: user, guest_egress: internet", "error", "cannot be held"),
        (
            "mode: user, guest_egress: none, guest_egress_allow: [10.0.0.0/8]",
            "error",
            "nor to guest_egress_allow",
        ),
        ("guest_egress: none, guest_egress_allow: [10.0.0.0/8]", "ok", "none, and 10.0.0.0/8"),
        ("mode: tap", "ok", "auto: internet, but any where deployments are from before"),
    ],
)
def test_the_doctor_says_what_guests_may_reach_and_what_cannot_be_held(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, network: str, state: str, said: str
) -> None:
    from agent.cli.check_config import load
    from agent.cli.doctor_egress import egress_line

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = tmp_path / "agent.yaml"
    path.write_text(f"tee: none\nallow_unattested: true\nnetwork: {{{network}}}\n")
    line = egress_line(load(path))
    assert (line.what, line.state) == ("egress", state)
    assert said in line.detail


def test_the_doctor_tells_of_a_hairpin_that_cannot_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from agent.cli.check_config import load
    from agent.cli.doctor_egress import egress_line

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    path = tmp_path / "agent.yaml"
    text = "tee: none\nallow_unattested: true\nnetwork: {hairpin: true}\n"
    path.write_text(text)
    assert egress_line(load(path)).state == "ok"
    path.write_text(f"{text}traffic: {{mode: haproxy}}\n")
    line = egress_line(load(path))
    assert (line.state, line.mend) == ("error", "use traffic.mode: nftables")
