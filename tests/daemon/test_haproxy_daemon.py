"""The whole daemon with HAProxy: deployments that share one address and port by their names."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.traffic import haproxy_runtime
from agent.traffic.haproxy_config import ROUTES, parse_route
from tests.fakes.daemon_process import Daemon, free_ports, place
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of

pytestmark = pytest.mark.slow

CONFIGS = {"v1": config_of(), "v2": config_of()}
SOON_S = 60  # it is looked at every ten seconds


async def connect(port: int, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A TLS client of this name."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", port, ssl=tls, server_hostname=name)


async def ask(port: int, name: str) -> Any:
    """What the guest says that a TLS client of this name is sent to."""
    reader, writer = await connect(port, name)
    writer.write(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_two_deployments_share_an_address_and_port_and_are_updated_apart(
    tmp_path: Path,
) -> None:
    program, source = install(tmp_path), fake_releases(tmp_path, CONFIGS)
    given = settings(program, traffic={"mode": "haproxy"})
    daemon = Daemon(place(), source, settings=given)
    try:
        await daemon.up()
        assert (await daemon.deploy(domain="a.example.org")).status == 202
        other = {"publish": [], "domain": "b.example.org"}
        assert (await daemon.deploy("other", **other)).status == 202
        for name in ("hello", "other"):
            assert (await daemon.over(name))["status"] == "completed"
        await _nobody_else_has_it(daemon)

        mine, others = [await connect(daemon.https, f"{name}.example.org") for name in "ab"]
        assert (await daemon.update("other", tag="v2")).status == 202
        update = await daemon.over("other")
        assert (update["status"], update["reset_connections"]) == ("completed", 0)
        async with asyncio.timeout(30):
            assert await others[0].read() == b"", "nothing was under way over it"
        others[1].close()
        assert not mine[0].at_eof()
        mine[1].close()
        daemon.kill()
        assert (await ask(daemon.https, "a.example.org"))["version"] == "v1"
        await daemon.up()
        assert (await ask(daemon.https, "b.example.org"))["version"] == "v2"
        assert (await daemon.get("/status")).body["host"]["traffic"] == "haproxy"
        assert (await daemon.send("DELETE", "/v1/deployments/other")).status in (200, 202)
        await daemon.until(lambda found: found is None, "other")
        assert (await ask(daemon.https, "a.example.org"))["version"] == "v1"
    finally:
        await daemon.leave()


async def _nobody_else_has_it(daemon: Daemon) -> None:
    """Neither without a name, nor by a name that is taken, nor as a plain port, whole."""
    (free,) = free_ports(1)
    whole = {"listen": f"127.0.0.1:{free}", "domain": "c.example.org"}
    plain = {**whole, "publish": [{"listen": f"127.0.0.1:{daemon.https}", "guest_port": 8080}]}
    for fields in ({"publish": []}, {"publish": [], "domain": "b.example.org"}, plain):
        refused = await daemon.deploy("third", **fields)
        assert refused.status == 409, refused
        assert "listen_in_use" in json.dumps(refused.body)


@dataclass(frozen=True)
class Proxy:
    """The HAProxy of a daemon that has had one, seen by its own runtime API."""

    daemon: Daemon

    @property
    def directory(self) -> Path:
        """Of the newest process, which is the one in force."""
        places = (self.daemon.run / "haproxy").glob("[0-9]*")
        return max(places, key=lambda path: int(path.name))

    async def say(self, command: str) -> str:
        """`{routes}` is the name of the map that decides."""
        place = self.directory
        (socket,) = [path for path in place.iterdir() if path.is_socket()]
        command = command.format(routes=place / ROUTES)
        return (await haproxy_runtime.ask(socket, [command]))[0]

    async def process(self) -> tuple[str, str, str]:
        """Which it is, and what it has been through."""
        rows = dict(
            line.split(": ", 1)
            for line in (await self.say("show info")).splitlines()
            if ": " in line
        )
        return rows["Pid"], rows["Process_num"], self.directory.name

    async def routes(self) -> dict[str, tuple[int, int]]:
        """Edition and generation that are in force, by deployment."""
        found = {}
        for line in (await self.say("show map {routes}")).splitlines():
            _, name, value = line.split(" ", 2)
            edition, order = parse_route(name, value)
            found[name] = (edition, order.generation)
        return found


async def test_a_switch_is_one_change_of_the_map_in_the_same_process(tmp_path: Path) -> None:
    program, source = install(tmp_path), fake_releases(tmp_path, CONFIGS)
    daemon = Daemon(place(), source, settings=settings(program, traffic={"mode": "haproxy"}))
    try:
        await daemon.up()
        assert (await daemon.deploy(domain="a.example.org")).status == 202
        assert (await daemon.over())["status"] == "completed"
        proxy = Proxy(daemon)
        process, before = await proxy.process(), await proxy.routes()
        seen = [before["hello"]]
        assert (await daemon.update(tag="v2")).status == 202
        while not (found := await daemon.deployment()) or not found["update"]["finished_at"]:
            now = (await proxy.routes())["hello"]
            if now != seen[-1]:
                seen.append(now)
        edition, generation = before["hello"]
        assert seen == [(edition, generation), (edition + 1, generation + 1)]
        assert await proxy.process() == process
        assert (await ask(daemon.https, "a.example.org"))["version"] == "v2"
        await _comes_back(daemon, proxy)
    finally:
        await daemon.leave()


async def _comes_back(daemon: Daemon, proxy: Proxy) -> None:
    """After somebody cleared the map, without a restart or a request."""
    assert await proxy.say("clear map {routes}") == ""
    with pytest.raises((OSError, ssl.SSLError, ValueError)):
        await ask(daemon.https, "a.example.org")
    began = time.monotonic()
    while True:
        try:
            assert (await ask(daemon.https, "a.example.org"))["version"] == "v2"
        except (OSError, ssl.SSLError, ValueError):
            assert time.monotonic() - began < SOON_S, daemon.log_tail()
            await asyncio.sleep(0.1)
        else:
            return
