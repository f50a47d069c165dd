"""Another host's agent by `--url`: who it is is proved before anything is said to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import cli
from agent.cli.exits import Exit
from tests.fakes.api_server import ThreadedRpc
from tests.fakes.engine import FakeEngine
from tests.fakes.fleet import HOST, Member, Pki


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("fleet"))


def files(pki: Pki, member: Member) -> tuple[str, ...]:
    return ("--certificate", str(member.pem), "--key", str(member.key), "--ca", str(pki.ca))


def call(*arguments: str) -> Result:
    return CliRunner(catch_exceptions=False).invoke(cli, list(arguments))


def test_an_observer_reads_and_a_coordinator_changes_with_its_epoch(fleet: Pki) -> None:
    engine = FakeEngine()
    with ThreadedRpc(engine, fleet) as rpc:
        url = ("--url", f"https://127.0.0.1:{rpc.port}", "--host-id", HOST)
        observer = (*url, *files(fleet, fleet.observer()))
        assert "host-1" in call(*observer, "status").stdout
        refused = call(*observer, "drain")
        assert refused.exit_code == Exit.FAILED
        coordinator = (*url, *files(fleet, fleet.coordinator()))
        untold = call(*coordinator, "drain")
        assert (untold.exit_code, "epoch" in untold.stderr) == (Exit.USAGE, True)
        assert call(*coordinator, "--epoch", "7", "drain").exit_code == 0
        assert engine.draining


def test_whoever_is_not_the_host_that_was_meant_is_told_nothing(
    fleet: Pki, tmp_path: Path
) -> None:
    with ThreadedRpc(FakeEngine(), fleet) as rpc:
        url = ("--url", f"https://127.0.0.1:{rpc.port}")
        mine = files(fleet, fleet.observer())
        other = call(*url, *mine, "--host-id", "another", "status")
        assert other.exit_code == Exit.UNREACHABLE
        assert "not host another" in other.stderr
        (tmp_path / "foreign").mkdir()
        foreign = Pki(tmp_path / "foreign")
        untrusted = call(*url, *mine[:4], "--ca", str(foreign.ca), "status")
        assert untrusted.exit_code == Exit.UNREACHABLE
        assert "is not who is meant" in untrusted.stderr
        roleless = call(*url, *files(fleet, fleet.member(None)), "status")
        assert roleless.exit_code == Exit.UNREACHABLE


def test_a_member_that_is_no_host_is_no_agent(fleet: Pki) -> None:
    import socket
    import threading

    observer = fleet.observer()
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            raw, _ = server.accept()
            with fleet.context(observer, server=True).wrap_socket(raw, server_side=True) as tls:
                got.append(tls.recv(4096))

        thread = threading.Thread(target=serve)
        thread.start()
        url = ("--url", f"https://127.0.0.1:{server.getsockname()[1]}")
        result = call(*url, *files(fleet, fleet.observer()), "status")
        thread.join()
    assert (result.exit_code, got) == (Exit.UNREACHABLE, [b""])
    assert "not a host" in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--url", "http://127.0.0.1:1"), "must be https://HOST[:PORT]"),
        (("--url", "https://h:99999"), "must be https://HOST[:PORT]"),
        (("--url", "https://h/path"), "must be https://HOST[:PORT]"),
        (("--url", "https://h"), "--url needs --certificate, --key, --ca"),
        (("--url", "https://h", "--socket", "/x"), "an agent is reached by one of them"),
        (
            ("--url", "https://h", "--certificate", "/x", "--key", "/y", "--ca", "/z"),
            "/x: there is no such file",
        ),
    ],
)
def test_a_wrong_way_to_it_is_a_usage_error(options: tuple[str, ...], text: str) -> None:
    result: Any = call(*options, "status")
    assert (result.exit_code, text in result.stderr) == (Exit.USAGE, True), result.stderr


def test_addresses_in_brackets_have_the_usual_port() -> None:
    from agent.cli.reach import Remote

    some = Path("/x")
    made = Remote.of("https://[2001:db8::1]/", certificate=some, key=some, ca=some)
    assert (made.host, made.port, str(made)) == ("2001:db8::1", 8471, "https://[2001:db8::1]:8471")
