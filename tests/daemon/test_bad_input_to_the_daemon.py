"""Wrong input to the whole daemon, by socket and by command line: told, and without a trace."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.api_bodies import WRONG_DEPLOY
from tests.fakes.daemon_process import Daemon, free_ports, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of
from tests.fakes.host_truth import discrepancies

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

CONFIGS = {
    "v1": config_of(),
    "v2": config_of(variables=("COLOUR",), secrets=("API_KEY",)),
}
_HELLO = "/v1/deployments/hello"
MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """With `hello` v1 deployed, on VMs that are none."""
    directory = tmp_path_factory.mktemp("fake")
    program, source = install(directory), fake_releases(directory, CONFIGS)
    daemon = Daemon(place(), source, settings=settings(program))
    try:
        await daemon.up()
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon
    finally:
        await daemon.leave()


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def unchanged(daemon: Daemon) -> AsyncIterator[None]:
    """Whatever a test sends: no deployment, event or file more than before."""
    before = await trace(daemon)
    yield
    assert not daemon.ended, daemon.log_tail()
    assert await trace(daemon) == before
    assert "Traceback" not in daemon.log.read_text()
    assert await discrepancies(daemon) == []


async def trace(daemon: Daemon) -> dict[str, Any]:
    """What a request could leave."""
    status = (await daemon.get("/status")).body
    events = (await daemon.get("/v1/events?after=0")).body
    return {
        "names": [row["name"] for row in status["deployments"]],
        "revision": status["deployments"][0]["revision"],
        "pid": status["deployments"][0]["enclaves"][0]["pid"],
        "events": events["next"],
        "problems": status["problems"],
        "files": sorted(
            str(path.relative_to(daemon.home))
            for root in (daemon.state, daemon.run)
            for path in root.rglob("*")
            if not path.is_relative_to(daemon.state / "cache")  # manifests that were looked at
        ),
    }


async def test_every_wrong_field_of_a_deployment_is_named(daemon: Daemon) -> None:
    good = {"tag": "v1", "repo": "hello", "listen": "127.0.0.1:9"}
    for change, field in WRONG_DEPLOY:
        answer = await daemon.send("PUT", "/v1/deployments/other", good | change)
        assert (answer.status, answer.body["field"]) == (400, field), (str(change)[:200], answer)
        assert len(answer.body["detail"]) < 400


WRONG: list[tuple[str, str, Any, int, str]] = [
    ("POST", f"{_HELLO}/updates", {"tag": "none-such"}, 409, "release_invalid"),
    ("POST", f"{_HELLO}/updates", {"tag": "../v1"}, 400, "bad_request"),
    ("POST", f"{_HELLO}/updates", {"tag": "v2"}, 400, "bad_request"),
    ("POST", f"{_HELLO}/updates", {"variables": {"A": "x" * 65537}}, 400, "bad_request"),
    ("POST", f"{_HELLO}/updates", {"strategy": "fresh"}, 409, "strategy_unavailable"),
    ("POST", f"{_HELLO}/updates", {"listen": "127.0.0.1:443x"}, 400, "bad_request"),
    (
        *("POST", f"{_HELLO}/updates"),
        {"publish": [{"listen": "127.0.0.1:9", "guest_port": 22}]},
        *(400, "bad_request"),
    ),
    ("POST", f"{_HELLO}/updates", {"lease": "a" * 16}, 409, "lease_expired"),
    ("POST", f"{_HELLO}/rollback", {"to": 99}, 404, "not_found"),
    ("POST", f"{_HELLO}/rollback", {"to": "v9"}, 404, "not_found"),
    ("POST", f"{_HELLO}/rollback", None, 409, "nothing_to_roll_back_to"),
    ("POST", f"{_HELLO}/rollback", {"to": [1]}, 400, "bad_request"),
    ("POST", f"{_HELLO}/updates/current/accept", None, 409, "no_update"),
    ("POST", f"{_HELLO}/updates/current/cancel", None, 409, "no_update"),
    ("POST", f"{_HELLO}/updates/current/retry", None, 409, "nothing_to_retry"),
    ("POST", f"{_HELLO}/start", None, 409, "running"),
    ("POST", f"{_HELLO}/start", {"tag": "v1"}, 400, "bad_request"),
    ("PUT", f"{_HELLO}/secrets", {"A B": "x"}, 400, "bad_request"),
    ("PUT", f"{_HELLO}/secrets", {"A": 1}, 400, "bad_request"),
    ("PUT", f"{_HELLO}/secrets", ["A"], 400, "bad_request"),
    ("PUT", f"{_HELLO}/secrets", {"A": "nul\0"}, 400, "bad_request"),
    ("PUT", _HELLO, {"tag": "v1", "listen": "127.0.0.1:9"}, 409, "exists"),
    ("DELETE", "/v1/deployments/none", None, 404, "not_found"),
    ("POST", "/v1/deployments/none/stop", None, 404, "not_found"),
    ("PUT", "/v1/deployments/none/secrets", {"A": "x"}, 404, "not_found"),
    ("POST", "/v1/plan", {}, 400, "bad_request"),
    ("POST", "/v1/plan", {"deployment": "none"}, 404, "not_found"),
    ("POST", "/v1/plan", {"demand": {"memory_mib": 0, "vcpus": 1}}, 400, "bad_request"),
    ("POST", "/v1/leases", {"ttl_s": 0, "deployment": "hello"}, 400, "bad_request"),
    ("POST", "/v1/leases", {"ttl_s": 1}, 400, "bad_request"),
    ("POST", "/v1/leases", {"ttl_s": 1, "deployment": "none"}, 404, "not_found"),
    (
        *("POST", "/v1/leases"),
        {"ttl_s": 1, "demand": {"memory_mib": 1, "vcpus": 1, "gpus": 8}},
        *(409, "gpus_insufficient"),
    ),
    ("GET", f"/v1/leases/{'a' * 16}", None, 404, "not_found"),
    ("DELETE", "/v1/leases/nonsense", None, 404, "not_found"),
    ("GET", "/v1/enclaves/../status", None, 404, "unknown_path"),
    ("GET", "/v1/enclaves/aaaaaaaa/console", None, 404, "not_found"),
    ("GET", "/v1/events?after=-1", None, 400, "bad_request"),
    ("GET", "/v1/events?after=999999999999999999999", None, 400, "bad_request"),
    ("PATCH", _HELLO, {}, 405, "method_not_allowed"),
]


@pytest.mark.parametrize(("method", "path", "body", "status", "code"), WRONG)
async def test_every_wrong_request_is_refused_with_a_code(
    daemon: Daemon, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = await daemon.send(method, path, body)
    assert (answer.status, answer.code) == (status, code), answer.body
    assert answer.headers["Content-Type"] == "application/problem+json"


async def raw(daemon: Daemon, data: bytes, *, more: int = 0) -> bytes:
    """The status line's code for bytes that no client library would send; `more` of them after."""
    reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    try:
        writer.write(data)
        for _ in range(more // MIB):
            writer.write(b"x" * MIB)
            await writer.drain()
        async with asyncio.timeout(20):
            line = await reader.readline()
        return line.split(b" ")[1]
    except ConnectionError:
        return b"cut off"
    finally:
        writer.close()


NAMES = [
    *(b"..", b"../../etc/passwd", b"a/../../b", b"%2e%2e%2f%2e%2e", b"a%2Fb", b"a,b", b"a%2Cb"),
    *(b"a%0Ab", b"a%0D%0AX-Y: z", b"a%00b", b"%ff%fe", b"A", b"-a", b"a" * 64, b"a" * 8000),
    *(b"$(id)", b"`id`", b"a;b", b"a%20b", b"\xc3\xa9", b"%", b"%zz"),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:30]))
async def test_no_name_but_a_name_reaches_anything(daemon: Daemon, name: bytes) -> None:
    body = json.dumps({"tag": "v1", "repo": "hello", "listen": "127.0.0.1:9"}).encode()
    for method, tail in ((b"PUT", b""), (b"DELETE", b""), (b"POST", b"/stop"), (b"GET", b"")):
        head = method + b" /v1/deployments/" + name + tail + b" HTTP/1.1\r\nHost: agent\r\n"
        head += b"Content-Type: application/json\r\n"
        data = body if method == b"PUT" else b""
        got = await raw(daemon, head + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        assert got in (b"400", b"404", b"405", b"414"), (method, got)


async def test_ten_megabytes_are_too_much_wherever_they_stand(daemon: Daemon) -> None:
    big = "x" * (10 * MIB)
    for path, body in (
        ("/v1/deployments/other", {"tag": "v1", "listen": "127.0.0.1:9", "variables": {"A": big}}),
        ("/v1/deployments/other", {"tag": big, "listen": "127.0.0.1:9"}),
        (f"{_HELLO}/secrets", {"KEY": big}),
        (f"{_HELLO}/secrets", {"K" * (10 * MIB): "x"}),
    ):
        answer = await daemon.send("PUT", path, body)
        assert (answer.status, answer.code) == (413, "too_large"), path
    head = b"PUT /v1/deployments/other HTTP/1.1\r\nHost: agent\r\n"
    assert await raw(daemon, head + b"X-Big: ", more=10 * MIB) in (b"400", b"431", b"cut off")
    line = b"GET /v1/deployments/"
    assert await raw(daemon, line, more=10 * MIB) in (b"400", b"404", b"414", b"cut off")
    chunked = (
        head + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\na00000\r\n"
    )
    assert await raw(daemon, chunked, more=10 * MIB) in (b"413", b"cut off")
    key = {"Idempotency-Key": "k" * 4000}
    answer = await daemon.send("POST", f"{_HELLO}/stop", headers=key)
    assert (answer.status, answer.body["field"]) == (400, "Idempotency-Key")


async def test_a_listener_that_another_process_has_is_refused(daemon: Daemon) -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        body = {"tag": "v1", "repo": "hello", "listen": f"127.0.0.1:{port}"}
        answer = await daemon.send("PUT", "/v1/deployments/other", body)
    assert (answer.status, answer.code) == (409, "listen_in_use")
    body = {"tag": "v1", "repo": "hello", "listen": f"0.0.0.0:{daemon.https}"}
    answer = await daemon.send("PUT", "/v1/deployments/other", body)
    assert (answer.status, answer.code) == (409, "listen_in_use")


COMMANDS: list[tuple[list[str], int]] = [
    (["deploy", "../x", "--tag", "v1", "--listen", "127.0.0.1:9"], 2),
    (["deploy", "a,b", "--tag", "v1", "--listen", "127.0.0.1:9"], 2),
    (["deploy", "a\nb", "--tag", "v1", "--listen", "127.0.0.1:9"], 2),
    (["deploy", "", "--tag", "v1", "--listen", "127.0.0.1:9"], 4),
    (["deploy", "other", "--tag", "../v1", "--listen", "127.0.0.1:9"], 2),
    (["deploy", "other", "--tag", "v1", "--listen", "nowhere"], 2),
    (["deploy", "other", "--tag", "v1", "--listen", "127.0.0.1:9", "--publish", "x"], 2),
    (["deploy", "other", "--tag", "v1", "--listen", "127.0.0.1:9", "--variable", "A"], 2),
    (["deploy", "other", "--tag", "v1", "--listen", "127.0.0.1:9", "--secret", "A=x"], 2),
    (["deploy", "other", "--tag", "v1", "--listen", "127.0.0.1:9", "--secret", "A=@/none"], 2),
    (["deploy", "other", "--tag", "v1"], 2),
    (["deploy", "hello", "--tag", "v1", "--listen", "127.0.0.1:9"], 3),
    (["relaunch", "none", "--tag", "v1"], 4),
    (["relaunch", "hello", "--tag", "none-such"], 3),
    (["relaunch", "hello", "--strategy", "fast"], 2),
    (["rollback", "hello", "--to", "99"], 4),
    (["rollback", "hello", "--to", "a,b"], 2),
    (["stop", "none"], 4),
    (["delete", "../hello"], 4),
    (["update", "cancel", "hello"], 3),
    (["secrets", "set", "hello", "A=secret-on-argv"], 2),
    (["secrets", "set", "none", "A=-"], 4),
    (["logs", "none"], 4),
    (["status", "none"], 4),
    (["nonsense"], 2),
]


@pytest.mark.parametrize(("words", "code"), COMMANDS, ids=lambda value: repr(value)[:40])
async def test_every_wrong_command_ends_with_its_code_and_a_sentence(
    daemon: Daemon, words: list[str], code: int
) -> None:
    found, out, err = await daemon.cli(*words, stdin=b"secret-on-stdin\n")
    assert found == code, (out, err)
    assert err.strip()
    assert "Traceback" not in out + err
    assert "secret-on" not in out + err


async def test_the_command_line_takes_no_secret_of_ten_megabytes(
    daemon: Daemon, tmp_path: Path
) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"x" * (10 * MIB))
    for source, stdin in ((f"@{big}", b""), ("-", big.read_bytes())):
        code, out, err = await daemon.cli("secrets", "set", "hello", f"KEY={source}", stdin=stdin)
        assert code == 2
        assert "64 KiB" in err
        assert len(out + err) < 1000
