"""The main stories, told by the real daemon with real VMs on one deployment, in order.

Each test takes the deployment as the one before left it: running, at some tag.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agent.enclaves.cage import FIRST_UID
from scripts.story.load import Load
from tests.daemon.conftest import running
from tests.fakes.daemon_process import AGENT, Daemon, brief, execute, processes_in
from tests.fakes.host_truth import discrepancies, links_of, vms_in
from tests.fakes.kept_clients import KeptClients

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SENTINEL = "sentinel-7f3a9c-of-a-secret"
REPEATED_SYN_S = 1.0  # a connection that nobody answers is tried again only then
CUT = "cut"  # said of an answer that did not come, or not whole
CLOSED = "closed"  # said of a connection that ended between two answers
LAG_S = 1.5  # between what happens and what is noted of it


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=[
        pytest.param("tap", marks=pytest.mark.root),
        pytest.param("user", marks=pytest.mark.unprivileged),
    ],
)
async def daemon(request: pytest.FixtureRequest, releases: Path) -> AsyncIterator[Daemon]:
    """With `hello` v1 deployed. A program of its own: what its process shows is looked through."""
    how = {"command": AGENT, "launch": execute}
    async with running(releases, mode=request.param, **how) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


async def serving(daemon: Daemon) -> dict[str, Any]:
    """What the workload says through the data plane."""
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    try:
        writer.write(b"GET / HTTP/1.0\r\nHost: hello\r\n\r\n")
        head, end, body = (await reader.read()).partition(b"\r\n\r\n")
        if not end:
            raise EOFError("no answer, or half of one")
        assert b" 200 " in head.split(b"\r\n")[0], head
        return json.loads(body)
    finally:
        writer.close()


async def moved(daemon: Daemon, tag: str, **options: Any) -> tuple[dict[str, Any], Load]:
    """Update to a tag under steady requests, to its end; the load has ended too."""
    load = Load(daemon.https, daemon.plain)
    load.start()
    try:
        answer = await daemon.update(tag=tag, **options)
        assert answer.status == 202, answer
        return await daemon.over(), load
    finally:
        load.tally = await load.stop()


def is_switched(deployment: dict[str, Any], tag: str) -> bool:
    update = deployment["update"]
    return update["tag"] == tag and update["switched_at"] is not None


async def test_a_vm_on_taps_is_caged_and_another_is_told_not_to_be(daemon: Daemon) -> None:
    host = (await daemon.get("/status")).body["host"]
    deployment = await daemon.deployment()
    assert deployment is not None
    status = Path("/proc", str(deployment["enclaves"][0]["pid"]), "status").read_text()
    uid = int(status.split("\nUid:\t")[1].split()[0])
    caged = daemon.mode == "tap"
    assert host["cage"] in (("enforce",) if caged else ("off", "report"))  # without root; with
    assert host["why"]["cage"]
    assert (uid >= FIRST_UID) is caged
    assert "\nNoNewPrivs:\t1\n" in status or not caged


async def test_an_update_under_steady_requests_loses_none(daemon: Daemon) -> None:
    """Neither of new connections nor of kept ones: each is busy when the drain ends."""
    kept = KeptClients(daemon.plain)
    kept.start()
    moving = asyncio.create_task(moved(daemon, "v2"))
    try:
        await daemon.until(lambda d: moving.done() or (d is not None and is_switched(d, "v2")))
        kept.busy.set()
        update, load = await moving
    finally:
        moving.cancel()
        await kept.stop()
    assert kept.lost == {}
    assert set(kept.versions) == {"v1", "v2"}
    assert kept.connections > kept.count, "they were to be there until the end of the drain"
    assert (update["status"], update["strategy"]) == ("completed", "blue_green"), update["error"]
    assert load.tally.failures == {}
    assert set(load.tally.versions) == {"v1", "v2"}
    assert load.tally.sent >= 20
    assert update["reset_connections"] == 0
    assert await discrepancies(daemon) == []


async def test_a_broken_version_fails_with_its_last_answer_and_console_and_no_request_is_lost(
    daemon: Daemon,
) -> None:
    update, load = await moved(daemon, "broken")
    assert update["status"] == "failed"
    assert update["step"] == "boot"  # which waits for healthy containers
    assert update["ready_at"] is None
    error = update["error"]
    assert "boot stage containers: web: unhealthy" in error["detail"]
    assert "guest" in error["console_tail"]
    assert load.tally.failures == {}
    assert set(load.tally.versions) == {"v2"}
    assert await discrepancies(daemon) == []


async def test_a_version_with_an_exited_container_is_never_ready(daemon: Daemon) -> None:
    assert (await daemon.update(tag="exited")).status == 202
    update = await daemon.over()
    assert (update["status"], update["ready_at"]) == ("failed", None)
    assert "container worker is exited with code 7" in update["error"]["detail"]
    assert (await serving(daemon))["version"] == "v2"
    assert await discrepancies(daemon) == []


async def test_a_cancel_during_boot_tears_only_the_new_one_down_and_at_once(
    daemon: Daemon,
) -> None:
    before = await daemon.deployment()
    assert before is not None
    assert (await daemon.update(tag="slow")).status == 202
    await daemon.step("boot")
    answer = await daemon.send("POST", "/v1/deployments/hello/updates/current/cancel")
    assert answer.status == 202
    update = await daemon.over(timeout_s=30)  # half of what its boot would take
    assert (update["status"], update["step"], update["error"]) == ("cancelled", "boot", None)
    after = await daemon.deployment()
    assert after is not None
    assert [e["id"] for e in after["enclaves"]] == [e["id"] for e in before["enclaves"]]
    assert (await serving(daemon))["version"] == "v2"
    assert await discrepancies(daemon) == []


async def test_kill_9_in_the_middle_of_an_update_changes_neither_its_end_nor_the_traffic(
    daemon: Daemon,
) -> None:
    load = Load(daemon.https, daemon.plain)
    load.start()
    try:
        assert (await daemon.update(tag="v1")).status == 202
        await daemon.step("boot")
        daemon.kill()
        assert len(vms_in(daemon)) == 2
        await asyncio.sleep(1)  # nobody is there to look, and requests go on
        await daemon.up()
        update = await daemon.over()
    finally:
        tally = await load.stop()
    assert (update["status"], update["strategy"]) == ("completed", "blue_green"), update["error"]
    assert tally.failures == {}
    assert set(tally.versions) == {"v2", "v1"}
    assert await discrepancies(daemon) == []


async def knock(daemon: Daemon, seen: list[tuple[float, float, str]]) -> None:
    """One connection after the other: when, how long it took, what came of it."""
    while True:
        begin = time.monotonic()
        try:
            async with asyncio.timeout(5):
                said = (await serving(daemon))["version"]
        except TimeoutError:
            said = "hangs"
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, type(error).__name__)
        except (EOFError, ValueError):
            said = CUT
        except AssertionError as error:
            said = str(error)
        seen.append((begin, time.monotonic() - begin, said))
        await asyncio.sleep(0.02)


async def ended(reader: asyncio.StreamReader) -> None:
    """Until the other side resets or closes."""
    with contextlib.suppress(ConnectionResetError):
        await reader.read()


async def test_a_stop_then_start_refuses_at_once_while_down_and_tells_its_downtime(
    daemon: Daemon,
) -> None:
    seen: list[tuple[float, float, str]] = []
    knocking = asyncio.create_task(knock(daemon, seen))
    while not seen:  # the first is answered before anything is asked
        await asyncio.sleep(0.01)
    assert (await daemon.update(tag="v2", strategy="stop_then_start")).status == 202
    update = await daemon.over()
    knocking.cancel()
    assert (update["status"], update["strategy"]) == ("completed", "stop_then_start")
    words = [said for _, _, said in seen]
    assert words[0] == "v1"
    assert words[-1] == "v2"
    down = [row for row in seen if row[2] not in ("v1", "v2")]
    refused = sorted(took for _, took, said in down if said == "ECONNREFUSED")
    assert len(refused) >= 10
    # Dropped in silence, each would take that long; one may have begun as the listener went.
    assert refused[-2] < REPEATED_SYN_S
    # What was open when the old version was stopped is reset or ended, never left hanging.
    others = {said for _, _, said in down} - {"ECONNREFUSED"}
    assert others <= {"ECONNRESET", CUT}
    assert_is_downtime(update["downtime_s"], seen)
    assert await discrepancies(daemon) == []


async def ask_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """Ask again and again on one connection (a guest closes an idle one); how it ended."""
    try:
        while True:
            writer.write(b"GET / HTTP/1.1\r\nHost: hello\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None, head
            await reader.readexactly(int(length[1]))
            await asyncio.sleep(0.5)
    except asyncio.IncompleteReadError as error:
        return CUT if error.partial else CLOSED
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except EOFError:
        return "closed by the guest"


def assert_is_downtime(told_s: float, seen: list[tuple[float, float, str]]) -> None:
    """It lies between what was surely down and what was surely not known to be up."""
    up = [row for row in seen if row[2] in ("v1", "v2")]
    refused = [row for row in seen if row[2] == "ECONNREFUSED"]
    last_of_old = max(begin for begin, _, said in up if said == "v1")
    first_of_new = min(begin + took for begin, took, said in up if said == "v2")
    surely = refused[-1][0] - (refused[0][0] + refused[0][1])
    assert max(0, surely - LAG_S) < told_s < first_of_new - last_of_old + LAG_S


async def test_a_rollback_is_an_update_backwards_and_ends_what_stays_open_too_long(
    daemon: Daemon,
) -> None:
    """A connection that never ends holds the old version up until the time to drain is over.

    Then its guest is asked to finish, and closes it between two answers.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    asking = asyncio.create_task(ask_on(reader, writer))
    answer = await daemon.send("POST", "/v1/deployments/hello/rollback", {"to": "v1"})
    assert answer.status == 202, answer
    update = await daemon.over()
    async with asyncio.timeout(30):
        assert await asking == CLOSED
    writer.close()
    assert (update["status"], update["tag"]) == ("completed", "v1")
    assert update["reset_connections"] == 0
    assert (await serving(daemon))["version"] == "v1"
    assert await discrepancies(daemon) == []


async def test_a_redeploy_gives_the_guest_its_variables_and_secrets_and_shows_no_value(
    daemon: Daemon,
) -> None:
    refused = await daemon.update(tag="v3", variables={"COLOUR": "green"})
    assert (refused.status, refused.code) == (409, "secrets_missing")
    answer = await daemon.update(
        tag="v3", variables={"COLOUR": "green"}, secrets={"API_KEY": SENTINEL}
    )
    assert answer.status == 202, answer
    update = await daemon.over()
    assert update["status"] == "completed", update["error"]
    said = await serving(daemon)
    assert said["env"]["COLOUR"] == "green"
    assert said["secrets"] == {"API_KEY": hashlib.sha256(SENTINEL.encode()).hexdigest()}
    assert await discrepancies(daemon) == []
    assert await places_that_show(daemon, SENTINEL) == []


async def places_that_show(daemon: Daemon, secret: str) -> list[str]:
    """Files, arguments, environments and answers in which a secret's value stands."""
    forms = (secret.encode(), base64.b64encode(secret.encode()).rstrip(b"=")[:-1])
    texts: dict[str, bytes] = {"log": daemon.log.read_bytes()}
    for path in daemon.state.rglob("*"):
        if path.is_file() and path.stat().st_size < 1 << 26:
            texts[str(path)] = path.read_bytes()
    for pid in [*processes_in(daemon.home), daemon.pid]:
        for name in ("cmdline", "environ"):
            texts[f"{pid} {name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
    enclaves = (await daemon.get("/v1/enclaves")).body["enclaves"]
    paths = [f"/v1/enclaves/{e['id']}/{what}" for e in enclaves for what in ("console", "")]
    for path in (
        *("/status", "/metrics", "/v1/deployments/hello", "/v1/deployments/hello/updates"),
        *("/v1/events?after=0", "/v1/capacity", *paths),
    ):
        answer = await daemon.get(path.rstrip("/"))
        assert answer.status == 200, path
        texts[path] = answer.body if isinstance(answer.body, bytes) else str(answer.body).encode()
    for words in (("status", "hello"), ("events",), ("logs", "hello")):
        code, out, err = await daemon.cli(*words)
        assert code == 0, err
        texts[" ".join(words)] = (out + err).encode()
    return [place for place, text in texts.items() if any(form in text for form in forms)]


async def test_new_values_of_secrets_make_them_stale_and_restart_nothing(daemon: Daemon) -> None:
    before = await daemon.deployment()
    answer = await daemon.send(
        "PUT", "/v1/deployments/hello/secrets", {"API_KEY": "another", "SPARE": "unused"}
    )
    assert (answer.status, answer.body["stale_secrets"]) == (200, ["API_KEY", "SPARE"])
    after = await daemon.deployment()
    assert before is not None
    assert after is not None
    assert after["stale_secrets"] == ["API_KEY", "SPARE"]
    assert after["enclaves"][0]["pid"] == before["enclaves"][0]["pid"]
    back = await daemon.send(
        "PUT", "/v1/deployments/hello/secrets", {"API_KEY": SENTINEL, "SPARE": None}
    )
    assert back.body["stale_secrets"] == [], "it is what the enclave was given"
    assert await discrepancies(daemon) == []


async def test_a_vm_that_ends_by_itself_is_relaunched_and_refused_meanwhile(
    daemon: Daemon,
) -> None:
    """On taps its QEMU is killed; in user mode its guest powers off."""
    killed = daemon.mode == "tap"
    if not killed:
        assert (await daemon.update(tag="fleeting")).status == 202
        assert (await daemon.over())["status"] == "completed"
    before = await daemon.deployment()
    assert before is not None
    seen: list[tuple[float, float, str]] = []
    knocking = asyncio.create_task(knock(daemon, seen))
    idle, its_writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
    if killed:
        os.kill(before["enclaves"][0]["pid"], signal.SIGKILL)
    gone = await daemon.until(lambda d: d is not None and d["status"] == "degraded")
    async with asyncio.timeout(5):
        await ended(idle)
    its_writer.close()
    back = await daemon.until(lambda d: d is not None and d["status"] == "running")
    knocking.cancel()
    assert gone is not None
    assert back is not None
    assert [e["id"] for e in back["enclaves"]] == [e["id"] for e in before["enclaves"]]
    assert back["enclaves"][0]["pid"] != before["enclaves"][0]["pid"]
    words = [said for _, _, said in seen]
    refused = [row for row in seen if row[2] == "ECONNREFUSED"]
    assert len(refused) >= 10
    # One may have begun as the VM died: it is refused when it tries again.
    late = [took for _, took, _ in refused if took > REPEATED_SYN_S]
    assert len(late) <= 1
    first = words.index("ECONNREFUSED")
    last = len(words) - words[::-1].index("ECONNREFUSED")
    assert set(words[first:last]) == {"ECONNREFUSED"}, seen[first:last]
    assert await discrepancies(daemon) == []


async def test_a_stopped_deployment_keeps_its_place_and_starts_again(daemon: Daemon) -> None:
    found = await daemon.deployment()
    assert found is not None
    if found["tag"] == "fleeting":  # on a busy host its guest is gone before it is up
        assert (await daemon.update(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
    assert (await daemon.send("POST", "/v1/deployments/hello/stop")).status == 202
    stopped = await daemon.until(lambda d: d is not None and d["enclaves"] == [])
    assert brief(stopped).startswith("hello: stopped")
    with pytest.raises(ConnectionRefusedError):
        await serving(daemon)
    assert vms_in(daemon) == {}
    assert await discrepancies(daemon) == []
    taken = await daemon.deploy("other", tag="v1")
    assert (taken.status, taken.code) == (409, "listen_in_use")

    assert (await daemon.send("POST", "/v1/deployments/hello/start")).status == 202
    update = await daemon.over()
    assert (update["status"], update["strategy"]) == ("completed", "fresh"), update["error"]
    assert await serving(daemon)
    assert await discrepancies(daemon) == []


async def test_a_deleted_deployment_leaves_nothing(daemon: Daemon) -> None:
    assert (await daemon.send("DELETE", "/v1/deployments/hello")).status == 202
    await daemon.until(lambda d: d is None)
    with pytest.raises(ConnectionRefusedError):
        await serving(daemon)
    assert vms_in(daemon) == {}
    assert links_of(daemon) == ({daemon.bridge} if daemon.mode == "tap" else set())
    assert await discrepancies(daemon) == []
    assert (await daemon.get("/v1/enclaves")).body["enclaves"] == []
    assert await places_of(daemon) == []


async def places_of(daemon: Daemon) -> list[str]:
    """Files of the deployment that are still there; its name stands in the events alone."""
    return [
        str(path)
        for root in (daemon.state, daemon.run)
        for path in root.rglob("*")
        if path.name == "hello"
    ]
