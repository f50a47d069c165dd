"""The agent as a service of a real systemd, in a host of its own: from its install to its end.

One host lives through all of it, in the order of this file: each test finds what the one before
left, as an operator would.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import privileged_actions
from tests.fakes.booted_host import CHECKOUT, INSIDE, BootedHost, missing
from tests.fakes.guest_releases import config_of, guest_image, make_releases
from tests.fakes.installed_agent import AGENT, NEW, OLD, Installed, installed_host, nothing_failed

pytestmark = [pytest.mark.root, pytest.mark.qemu, pytest.mark.slow, pytest.mark.timeout(240)]

PORT = 8443
DONE = [action.__name__ for action in privileged_actions.DONE]
CLOSED = [action.__name__ for action in privileged_actions.CLOSED]
TRIAL = "/var/lib/enclave-agent/trial"
SENTINEL = "sentinel-3f9c1e7d5b"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The earlier version, running."""
    assert not missing(), f"install systemd-container: {missing()} are not here"
    stuff = tmp_path_factory.mktemp("stuff")
    stuff.chmod(0o755)
    configs = {"v1": config_of(), "v2": config_of(secrets=("API_KEY",), memory_mib=320)}
    make_releases(stuff / "source", configs, guest_image())
    with installed_host(stuff, stuff / "source") as here:
        yield here


def test_an_installed_agent_is_ready_and_says_what_it_became(installed: Installed) -> None:
    host = installed.host
    shown = host.show(AGENT, "ActiveState", "Type", "StatusText", "NRestarts")
    assert shown["ActiveState"] == "active"
    assert shown["StatusText"] == "adopted and reconciled"
    assert shown["NRestarts"] == "0"
    became = installed.status()["host"]
    assert (became["supervisor"], became["agent_version"]) == ("systemd", OLD)
    assert (became["network"], became["traffic"]) == ("tap", "nftables")
    told = host.run("enclave-agent", "doctor", "-o", "json", check=False).stdout
    lines = {line["what"]: line for line in json.loads(told)}
    assert lines["supervisor"]["detail"].endswith("each VM is a unit with a user of its own")
    assert {lines[what]["state"] for what in ("agent", "outside", "cage")} == {"ok"}
    if (Path("/sys/bus/pci/drivers")).exists():  # which is read-only inside
        assert lines["sysfs"]["state"] == "warn"


def test_installing_the_same_again_changes_nothing(installed: Installed) -> None:
    before = installed.pid()
    assert f"{OLD} runs already" in installed.install(OLD)
    assert installed.pid() == before


def test_other_managers_of_links_are_told_to_leave_ours_alone(installed: Installed) -> None:
    root = installed.host.root
    networkd = (root / "etc/systemd/network/05-enclave-agent.network").read_text()
    assert "Name=enclave0 enc-*" in networkd
    manager = (root / "etc/NetworkManager/conf.d/enclave-agent.conf").read_text()
    assert "unmanaged-devices+=interface-name:enclave0;interface-name:enc-*" in manager


def test_the_shipped_unit_is_closed_but_for_the_doors_that_it_explains(
    installed: Installed,
) -> None:
    told = installed.host.run("systemd-analyze", "security", "--no-pager", AGENT).stdout
    exposure = float(re.findall(r"exposure level for \S+: ([\d.]+)", told)[0])
    assert exposure <= 3.0


def test_every_privileged_action_is_done_inside_the_shipped_unit_and_nothing_beyond(
    installed: Installed,
) -> None:
    other = installed.host.run("systemctl", "show", "-P", "MainPID", "dbus.service")
    told = inside_the_unit(installed.host, "privileged_actions", TRIAL, other.stdout.strip())
    assert {name: told[name] for name in DONE} == dict.fromkeys(DONE, "done")
    assert [name for name in CLOSED if told[name] == "done"] == []


@pytest.mark.parametrize("kind", ["userspace", "haproxy"])
def test_a_data_plane_outlives_the_unit_of_whoever_started_it(
    installed: Installed, kind: str
) -> None:
    host = installed.host
    began = inside_the_unit(host, "planes_in_units", TRIAL, kind, "9444", "begin")
    assert began == "done"
    (unit,) = host.units("enclave-traffic-*.service")
    connect = "import socket; socket.create_connection(('127.0.0.1', 9444))"
    host.run("python3", "-c", connect)
    taken = inside_the_unit(host, "planes_in_units", TRIAL, kind, "8470", "collide")
    assert "127.0.0.1:8470" in taken
    assert host.units("enclave-traffic-*.service") == [unit]
    assert inside_the_unit(host, "planes_in_units", TRIAL, kind, "0", "end") == "done"
    deadline = time.monotonic() + 5
    while host.units("enclave-traffic-*.service"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def inside_the_unit(host: BootedHost, module: str, *words: str) -> Any:
    """What a program of the tests tells, run in the place of the agent in the unit's own text."""
    program = f"-m tests.fakes.{module} {' '.join(words)}"
    lines = []
    other_words = ("ExecStart=", "Type=", "Restart", "Watchdog", "Requires=", "Wants=", "After=")
    for line in (CHECKOUT / "systemd" / AGENT).read_text().splitlines():
        if not line.startswith(other_words):
            lines.append(line)
        if line == "[Service]":
            lines.append(f"ExecStart=/opt/enclave-agent/current/bin/python {program}")
            lines += ["Type=oneshot", f"WorkingDirectory={INSIDE}"]
            lines.append("Environment=PYTHONDONTWRITEBYTECODE=1")
    unit = "/run/systemd/system/trial.service"
    host.run("install", "-m", "644", "/dev/stdin", unit, stdin="\n".join(lines))
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "trial.service")
    told = json.loads(host.run("cat", f"{TRIAL}/told.json").stdout)
    host.run("rm", f"{TRIAL}/told.json", unit)
    return told


def test_an_enclave_is_a_unit_under_a_user_of_its_own(installed: Installed) -> None:
    host = installed.host
    listen = f"127.0.0.1:{PORT}"
    installed.cli("deploy", "hello", "--tag", "v1", "--listen", listen, "--wait")
    secret = ("--secret", "API_KEY=-")
    deploy = ("deploy", "big", "--tag", "v2", "--repo", "hello", "--listen", "127.0.0.1:8444")
    installed.cli(*deploy, *secret, "--wait", stdin=SENTINEL)
    enclave = installed.enclaves()["hello"]
    assert enclave["unit"] == f"enclave-{enclave['id']}.service"
    wanted = ("MainPID", "User", "Slice", "DynamicUser", "DevicePolicy", "OOMPolicy")
    shown = host.show(enclave["unit"], *wanted, "LimitMEMLOCK", "InvocationID", "ExecStop")
    assert shown["MainPID"] == str(enclave["pid"])
    assert shown["Slice"] == "enclaves.slice"
    assert (shown["DynamicUser"], shown["DevicePolicy"]) == ("yes", "closed")
    assert (shown["OOMPolicy"], shown["LimitMEMLOCK"]) == ("kill", "infinity")
    assert "unit_stop.py" in shown["ExecStop"]
    uids = set()
    for one in installed.enclaves().values():
        status = host.run("cat", f"/proc/{one['pid']}/status").stdout
        uids.add(status.split("\nUid:\t")[1].split("\t")[0])
        assert "\nCapEff:\t0000000000000000\n" in status
    assert len(uids) == 2
    assert "0" not in uids


def test_a_kill_of_the_agent_under_load_is_noticed_by_nobody(installed: Installed) -> None:
    before = installed.enclaves()
    with installed.load(PORT) as told:
        for _ in range(2):
            killed = installed.pid()
            installed.host.run("kill", "-9", str(killed))
            while installed.pid() in (0, killed):
                time.sleep(0.02)
            installed.until_ready()
    nothing_failed(told, killed=True)
    after = installed.enclaves()
    assert {n: (e["id"], e["pid"]) for n, e in after.items()} == {
        n: (e["id"], e["pid"]) for n, e in before.items()
    }
    assert len(installed.host.units("enclave-????????.service")) == 2
    assert installed.host.run("pgrep", "-c", "-f", "qemu-system").stdout.strip() == "2"


def test_a_kill_in_the_middle_of_a_launch_doubles_nothing_and_loses_nothing(
    installed: Installed,
) -> None:
    host = installed.host
    before = set(host.units("enclave-????????.service"))
    words = ("--tag", "v1", "--repo", "hello", "--listen", "127.0.0.1:8445")
    installed.cli("deploy", "extra", *words)
    killed = installed.pid()
    pattern = ("list-units", "--all", "--plain", "--no-legend", "enclave-????????.service")
    while len(host.run("systemctl", *pattern).stdout.splitlines()) == len(before):
        pass  # until systemd knows of another unit, whatever became of it by then
    host.run("kill", "-9", str(killed))
    while installed.pid() in (0, killed):
        time.sleep(0.02)
    installed.until_ready()
    deadline = time.monotonic() + 60
    while installed.update_of("extra") != "completed":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len(host.units("enclave-????????.service")) == len(before) + 1
    assert host.run("pgrep", "-c", "-f", "qemu-system").stdout.strip() == str(len(before) + 1)
    installed.cli("delete", "extra")
    while host.units("enclave-????????.service") != sorted(before):
        assert time.monotonic() < deadline + 30
        time.sleep(0.2)


def test_an_agent_whose_loop_is_blocked_is_killed_and_begun_again(installed: Installed) -> None:
    host = installed.host
    drop_in = "/run/systemd/system/enclave-agent.service.d/quick.conf"
    text = "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\n"
    host.run("install", "-D", "-m", "644", "/dev/stdin", drop_in, stdin=text)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", AGENT)
    before, blocked = installed.enclaves(), installed.pid()
    host.run("kill", "-STOP", str(blocked))  # no step of any loop of it is done any more
    began = time.monotonic()
    while installed.pid() in (0, blocked):
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    installed.until_ready()
    assert "Watchdog timeout" in host.journal("-u", AGENT)
    assert installed.enclaves()["hello"]["pid"] == before["hello"]["pid"]
    host.run("rm", drop_in)
    host.run("systemctl", "daemon-reload")


def test_ends_in_a_row_are_no_reason_to_give_up(installed: Installed) -> None:
    """More of them, and faster, than systemd bears by default: five within ten seconds."""
    host, before = installed.host, installed.enclaves()
    began, killed = time.monotonic(), 0
    for _ in range(6):
        while (pid := installed.pid()) in (0, killed):
            assert time.monotonic() - began < 60, host.show(AGENT, "ActiveState", "Result")
            time.sleep(0.02)
        host.run("kill", "-9", str(pid), check=False)
        killed = pid
    installed.until_ready()
    assert installed.enclaves()["hello"]["pid"] == before["hello"]["pid"]


def test_a_configuration_that_cannot_be_is_not_tried_again_until_somebody_asks(
    installed: Installed,
) -> None:
    host, before = installed.host, installed.enclaves()
    config = host.root / "etc/enclave-agent/agent.yaml"
    good = config.read_text()
    config.write_text(good + "no_such_key: 1\n")
    host.run("systemctl", "restart", AGENT, check=False)
    deadline = time.monotonic() + 30
    while host.show(AGENT, "ActiveState")["ActiveState"] != "failed":
        assert time.monotonic() < deadline, host.show(AGENT, "ActiveState", "SubState")
        time.sleep(0.1)
    assert host.show(AGENT, "ExecMainStatus")["ExecMainStatus"] == "2"
    assert "no_such_key" in host.journal("-u", AGENT, "-n", "20")
    with installed.load(PORT) as told:
        config.write_text(good)
    assert told["guest"] > 5
    assert [one for one in told["failed"] if one.startswith("guest")] == []
    installed.until_ready()  # the requests of that load came in at the socket
    assert installed.enclaves()["hello"]["pid"] == before["hello"]["pid"]


def test_without_journald_it_goes_on_and_begins(installed: Installed) -> None:
    host, before = installed.host, installed.enclaves()
    units = ("systemd-journald.service", "systemd-journald.socket")
    host.run("systemctl", "stop", *units, "systemd-journald-dev-log.socket")
    try:
        killed = installed.pid()
        host.run("kill", "-9", str(killed))
        while installed.pid() in (0, killed):
            time.sleep(0.02)
        installed.until_ready()
        for change in ("drain", "undrain"):
            installed.cli(change)
    finally:
        host.run("systemctl", "start", "systemd-journald-dev-log.socket", *reversed(units))
    after = installed.enclaves()
    assert {n: e["pid"] for n, e in after.items()} == {n: e["pid"] for n, e in before.items()}
    host.run("systemctl", "restart", AGENT)
    deadline = time.monotonic() + 30
    while not host.journal(f"_PID={installed.pid()}", "EVENT=ready"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_upgrade_under_load_keeps_state_vms_traffic_and_requests(installed: Installed) -> None:
    before = installed.enclaves()
    with installed.load(PORT) as told:
        installed.install(NEW)
    nothing_failed(told)
    after = installed.enclaves()
    assert installed.status()["host"]["agent_version"] == NEW
    assert {n: e["pid"] for n, e in after.items()} == {n: e["pid"] for n, e in before.items()}


def test_transitions_are_in_the_journal_with_their_fields(installed: Installed) -> None:
    enclave = installed.enclaves()["hello"]["id"]
    text = installed.host.journal("-o", "json", f"ENCLAVE={enclave}", "EVENT=vm phase")
    rows = [json.loads(line) for line in text.splitlines()]
    assert [(row["FROM"], row["TO"]) for row in rows][:2] == [
        ("absent", "starting"),
        ("starting", "running"),
    ]
    assert {row["_SYSTEMD_UNIT"] for row in rows} == {AGENT}


def test_a_secret_is_found_nowhere(installed: Installed) -> None:
    host = installed.host
    assert SENTINEL not in host.journal("-o", "export", "-a")
    answers = [installed.cli(*words) for words in (("status", "-o", "json"), ("events",))]
    answers += [installed.cli("status", "big", "-o", "json"), installed.cli("logs", "big")]
    assert not [text for text in answers if SENTINEL in text]
    search = (
        "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | grep -c {s};"
        "grep -rlF {s} /var/lib/enclave-agent /etc /opt /tmp /var/tmp /run/systemd 2>/dev/null"
    )
    found = host.run("sh", "-c", search.format(s="sentinel-3f9c1e7d5[b]"), check=False).stdout
    assert found.split() == ["0"]
    # Where it is kept: in memory, for root alone.
    kept = host.run("grep", "-rlF", SENTINEL, "/run/enclave-agent").stdout.split()
    assert kept
    assert all(path.startswith("/run/enclave-agent/secrets/") for path in kept)
    assert host.run("stat", "-fc", "%T", "/run/enclave-agent").stdout.strip() == "tmpfs"


def test_at_shutdown_the_agent_stops_first_and_guests_power_off(installed: Installed) -> None:
    host = installed.host
    enclave = installed.enclaves()["hello"]
    units = {one["unit"] for one in installed.enclaves().values()}
    asks_whether_it_shuts_down(host)
    took = host.power_off()
    assert took < 60
    text = host.journal("-o", "json")
    rows = [json.loads(line) for line in text.splitlines()]

    def last(unit: str, what: str) -> int:
        """When systemd, or a program in the unit, said so for the last time."""
        found = [
            int(row["__MONOTONIC_TIMESTAMP"])
            for row in rows
            if unit in (row.get("UNIT"), row.get("_SYSTEMD_UNIT"))
            and what in str(row.get("MESSAGE"))
        ]
        assert found, (unit, what)
        return found[-1]

    gone = last(AGENT, "Stopped")
    assert gone <= last(enclave["unit"], "Stopping")
    said = [row["MESSAGE"] for row in rows if row.get("SYSLOG_IDENTIFIER") == "enclave-stop"]
    assert len([one for one in said if one.endswith("/vm/qmp-stop: the guest powered off")]) == 2
    assert last(enclave["unit"], "Stopped") > gone
    assert not [row for row in rows if "timed out" in str(row.get("MESSAGE"))]
    asked = [str(row["MESSAGE"]) for row in rows if row.get("_SYSTEMD_UNIT") == "asks.service"]
    assert asked == ["shuts down: False", "shuts down: True"]
    started = [
        row["UNIT"] for row in rows if str(row.get("MESSAGE")).startswith("Started enclave-")
    ]
    launched = sorted(unit for unit in started if unit in units)
    assert launched == sorted(units)  # once each: nothing was launched again while it went down


def asks_whether_it_shuts_down(host: BootedHost) -> None:
    """A service that does so as it starts and as it is stopped, as an agent beside it would."""
    ask = "import asyncio; from agent.host.units import host_is_stopping as ask"
    told = f"\"{ask}; print('shuts down:', asyncio.run(ask()))\""
    python = f"/opt/enclave-agent/current/bin/python -B -c {told}"
    lines = ["[Service]", "Type=oneshot", "RemainAfterExit=yes", f"WorkingDirectory={INSIDE}"]
    lines += [f"ExecStart={python}", f"ExecStop={python}"]
    unit = "/run/systemd/system/asks.service"
    host.run("install", "-m", "644", "/dev/stdin", unit, stdin="\n".join(lines))
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "asks.service")


def test_after_a_reboot_what_ran_runs_again_the_biggest_first_and_what_has_secrets_waits(
    installed: Installed,
) -> None:
    installed.host.boot()
    installed.until_ready()
    deadline = time.monotonic() + 60
    while installed.enclaves()["hello"]["healthy"] is not True:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    rows = {row["name"]: row["status"] for row in installed.status()["deployments"]}
    assert rows == {"hello": "running", "big": "waiting_for_secrets"}


def test_nothing_that_a_taken_qemu_attempts_in_its_unit_comes_off(installed: Installed) -> None:
    host = installed.host
    python = "/opt/enclave-agent/current/bin/python -B"
    program = f"cd {INSIDE} && {python} -m tests.fakes.jailed_in_units /run/enclave-agent/jail"
    told = json.loads(host.run("sh", "-c", program).stdout)
    host.run("rm", "-r", "/run/enclave-agent/jail")
    assert told["not_held"] == {}
    assert told["wrong"] == []
    assert told["neighbour_lives"]
    controllers = host.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    assert told["memory_limit_was_hit"] is ("memory" in controllers)
    assert 10 < told["threads"] < (40 if "pids" in controllers else 301)
    assert len(set(told["uids"])) == 2
    became = installed.status()["host"]
    assert became["cage"] == "enforce"
    assert became["why"]["cage"] == "one was tried; VMs are caged in units"
    enclave = installed.enclaves()["hello"]
    said = host.run("systemd-analyze", "security", "--no-pager", enclave["unit"]).stdout
    assert float(re.findall(r"exposure level for \S+: ([\d.]+)", said)[0]) <= 2.0
    shown = host.show(enclave["unit"], "MemoryMax", "MemoryHigh", "PrivateNetwork")
    assert int(shown["MemoryMax"]) > 256 << 20
    assert (shown["MemoryHigh"], shown["PrivateNetwork"]) == ("infinity", "yes")


def test_a_deployment_whose_secrets_are_kept_at_rest_starts_by_itself_after_a_reboot(
    installed: Installed,
) -> None:
    """systemd-creds runs beside the closed unit, with the host's key, which it makes."""
    host = installed.host
    file = host.root / "etc/enclave-agent/agent.yaml"
    file.write_text(file.read_text() + "secrets: {at_rest: systemd_creds}\n")
    host.run("systemctl", "restart", AGENT)
    installed.until_ready()
    installed.cli("secrets", "set", "big", "API_KEY=-", stdin=SENTINEL)
    until_running(installed, "big")
    kept = "/var/lib/enclave-agent/secrets-at-rest/big/API_KEY.1"
    assert host.run("stat", "-c", "%a %U", kept).stdout.split() == ["600", "root"]
    told = json.loads(host.run("enclave-agent", "doctor", "-o", "json", check=False).stdout)
    (line,) = [line for line in told if line["what"] == "secrets"]
    assert line["state"] == "ok"
    host.power_off()
    host.boot()
    installed.until_ready()
    until_running(installed, "big")
    codes = {one["code"] for one in installed.status()["problems"]}
    assert not {code for code in codes if code.startswith("secrets")}
    found = host.run("grep", "-rlF", SENTINEL, "/var", "/etc", "/tmp", check=False)
    assert found.stdout == ""


def until_running(installed: Installed, name: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        rows = {row["name"]: row["status"] for row in installed.status()["deployments"]}
        if rows[name] == "running":
            return
        assert time.monotonic() < deadline, (rows, installed.host.journal("-u", AGENT, "-n", "40"))
        time.sleep(0.2)


def test_an_uninstalled_agent_leaves_nothing_but_its_data(installed: Installed) -> None:
    host = installed.host
    uninstall = str(INSIDE / "scripts/uninstall")
    refused = host.run(uninstall, check=False)
    assert refused.returncode == 1
    assert "--stop-enclaves" in refused.stderr
    said = host.run(uninstall, "--stop-enclaves").stderr
    assert "what stays: /var/lib/enclave-agent /etc/enclave-agent" in said
    left = "find / -xdev -iname '*enclave*' -not -path '/proc/*' -not -path '/usr/*'"
    found = host.run("sh", "-c", f"{left} 2>/dev/null", check=False)
    others = ("/sys", "/var/log/journal", "/srv")
    paths = {path for path in found.stdout.split() if not path.startswith(others)}
    data = ("/var/lib/enclave-agent", "/etc/enclave-agent")
    assert {path for path in paths if not path.startswith(data)} == set()
    assert host.units("enclave*") == []
    assert host.run("nft", "list", "tables").stdout == ""
    assert "enclave0" not in host.run("ip", "link").stdout
    assert host.run("pgrep", "-f", "qemu-system", check=False).returncode == 1
    again = host.run(uninstall, "--purge").stderr
    assert "gone, with its data" in again
