"""Other programs that route on the same host: theirs goes on, ours too, whoever starts first."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.host.network_news import NetworkNews
from agent.model.resources import Listen
from agent.traffic.foreign_watch import ForeignRules
from agent.traffic.nftables_watch import NftablesWatch
from tests.fakes import foreign_rules as theirs
from tests.fakes.netns import ip, join
from tests.traffic.remote import Remote
from tests.traffic.worlds import BRIDGE, CLIENT, OUTSIDE, SUBNET, NftablesWorld, order

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("iptables") is None, reason="no iptables here"),
]

LISTEN = Listen(address=OUTSIDE, port=8443)
# their rules, their link, its address, who is behind it, whether they cut us off
OTHERS = {
    "docker": (theirs.DOCKER, "docker0", "172.17.0.1/16", "172.17.0.2/16", True),
    "libvirt": (theirs.LIBVIRT, "virbr0", "192.168.122.1/24", "192.168.122.2/24", False),
    "wireguard": (theirs.WIREGUARD, "wg0", "10.8.0.1/24", "10.8.0.2/24", False),
}


def start_theirs(rules: str, link: str, own: str) -> None:
    """As they do: an address on their link, the host a router, their rules."""
    ip(f"addr add {own} dev {link}")
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    text = rules.format(bridge=BRIDGE, uplink="trtclient")
    argv = ["sh", "-e"] if "iptables" in text else ["nft", "-f", "-"]
    subprocess.run(argv, input=text, text=True, check=True)


@contextlib.asynccontextmanager
async def ours(host: NftablesWorld, news: NetworkNews) -> AsyncIterator[None]:
    traffic = host.traffic()
    await traffic.start()
    await traffic.apply(order(1, (LISTEN, host.endpoint("blue"))))
    foreign = ForeignRules(BRIDGE, SUBNET, "enclave_agent")
    task = asyncio.create_task(NftablesWatch(traffic, foreign, news).run())
    await asyncio.sleep(0.2)
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def soon(remote: Remote, address: str, port: int, outcome: str = "connected") -> None:
    began = time.monotonic()
    while remote.outcome(address, port) != outcome:
        assert time.monotonic() - began < 3, (address, port)
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("first", ["theirs", "ours"])
@pytest.mark.parametrize("name", OTHERS)
async def test_both_go_on_whoever_starts_first(host: NftablesWorld, name: str, first: str) -> None:
    rules, link, own, guest, cut_off = OTHERS[name]
    news = NetworkNews()
    with Remote() as client, Remote() as their_guest:
        join(client.pid, link="trtclient", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtclient")
        gateway = own.partition("/")[0]
        join(their_guest.pid, link=link, address=guest, gateway=gateway)
        with client.server(7000):
            if first == "theirs":
                start_theirs(rules, link, own)
            async with ours(host, news):
                if first == "ours":
                    assert client.outcome(OUTSIDE, 8443) == "connected"
                    start_theirs(rules, link, own)
                await soon(their_guest, CLIENT, 7000)
                if cut_off:
                    await asyncio.sleep(1)
                    (problem,) = news.problems.values()
                    assert "table ip filter, chain FORWARD" in problem.detail
                    (command, *_) = re.findall(r"`([^`]+)`", problem.mend)
                    subprocess.run(["sh", "-ec", command], check=True)
                await soon(client, OUTSIDE, 8443)
                await asyncio.sleep(0.5)
                assert news.problems == {}
                assert their_guest.outcome(CLIENT, 7000) == "connected"
