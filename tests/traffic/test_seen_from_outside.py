"""Listeners asked as clients ask them, through the host's real forward path."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from agent.config import ProbesConfig
from agent.host.clock import RealClock
from agent.inventory.local_addresses import read_local_addresses
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.resources import Listen
from agent.probes.outside import OutsideProber
from agent.probes.outside_link import OutsideLink, OutsideLinkError
from agent.probes.port import ListenerReach, OutsideListener, OutsideTarget
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.uplinks import uplinks
from tests.fakes.netns import ip, join
from tests.traffic.remote import Remote
from tests.traffic.worlds import BRIDGE, CLIENT, OUTSIDE, SUBNET, NftablesWorld, order

NAME = DeploymentName("hello")
LINK = "enc-out-test"
WAIT_S = 60.0
QUICK = ProbesConfig(interval_s=0.1, timeout_s=0.5, failure_threshold=2)
DROPS = """table ip filter {
    chain FORWARD {
        type filter hook forward priority filter; policy drop;
    }
}
"""
FORWARDING = Path("/proc/sys/net/ipv4/conf")
ALL = Listen(address="0.0.0.0", port=8443)
ONE = Listen(address=OUTSIDE, port=8080)

pytestmark = pytest.mark.root


def nft(text: str) -> None:
    subprocess.run(["nft", "-f", "-"], input=text, check=True, capture_output=True, text=True)


class Seen:
    """A deployment in force at two listeners, and who asks them."""

    def __init__(self, world: NftablesWorld) -> None:
        self.world = world
        self.link = OutsideLink(LINK, avoid=(SUBNET,))
        self.traffic: NftablesTraffic = world.traffic()
        self.prober = OutsideProber(
            QUICK, RealClock(), self.link, addresses=read_local_addresses, relayed=False
        )

    async def switch(self, generation: int, endpoint: Endpoint, *, enclave: str) -> None:
        await self.traffic.apply(order(generation, (ALL, endpoint), (ONE, endpoint)))
        self.watch(generation, enclave)

    def watch(self, generation: int, enclave: str) -> None:
        listeners = (OutsideListener(listen=ALL), OutsideListener(listen=ONE))
        target = OutsideTarget(
            generation=generation, enclave=EnclaveId(enclave), listeners=listeners
        )
        self.prober.watch(NAME, target)

    def reach(self, listen: Listen) -> ListenerReach:
        view = self.prober.view(NAME)
        assert view is not None
        return next(one for one in view.listeners if one.listen == listen)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not holds():
                await asyncio.sleep(0.02)


@pytest.fixture
async def seen(host: NftablesWorld) -> AsyncIterator[Seen]:
    with Remote() as client:
        join(client.pid, link="trtout", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtout")
        made = Seen(host)
        await made.traffic.start()
        task = asyncio.create_task(made.prober.run())
        yield made
        assert not task.done(), task.exception()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def is_told(seen: Seen, *, reached: bool) -> bool:
    reaches = (seen.reach(ALL), seen.reach(ONE))
    return all(one.reached is reached and one.by_outside for one in reaches)


async def test_a_host_that_forwards_for_nobody_is_seen_through_from_outside(seen: Seen) -> None:
    """Its own switch is turned, the host's is not, and it is taken for nobody's uplink."""
    assert (FORWARDING / "all/forwarding").read_text().strip() == "0"
    await seen.switch(1, seen.world.endpoint("blue"), enclave="aaaaaaaa")
    await seen.until(lambda: is_told(seen, reached=True))
    assert (FORWARDING / "all/forwarding").read_text().strip() == "0"
    assert uplinks(BRIDGE) == {"trtout"}


async def test_another_programs_drop_is_seen_with_what_happens_and_so_is_its_end(
    seen: Seen,
) -> None:
    await seen.switch(1, seen.world.endpoint("blue"), enclave="aaaaaaaa")
    await seen.until(lambda: is_told(seen, reached=True))
    nft(DROPS)
    seen.watch(2, "bbbbbbbb")
    await seen.until(lambda: is_told(seen, reached=False))
    assert seen.reach(ONE).problem == "no answer within 0.5 s"
    view = seen.prober.view(NAME)
    assert view is not None
    assert view.reached_before == {ALL, ONE}
    assert not view.doubtful
    nft("delete table ip filter")
    await seen.until(lambda: is_told(seen, reached=True))


async def test_a_guest_that_answers_this_host_alone_is_not_reached(seen: Seen) -> None:
    """As one with a packet filter or a route of its own: probes from the gateway would pass."""
    await seen.switch(1, seen.world.endpoint("blue"), enclave="aaaaaaaa")
    await seen.until(lambda: is_told(seen, reached=True))
    ip("route del default", seen.world.servers["blue"].pid)
    to = seen.world.endpoint("blue")
    with socket.create_connection((to.address, to.port), timeout=WAIT_S):
        pass
    seen.watch(2, "aaaaaaaa")
    await seen.until(lambda: is_told(seen, reached=False))


async def test_an_address_that_is_not_here_now_tells_nothing(seen: Seen) -> None:
    await seen.switch(1, seen.world.endpoint("blue"), enclave="aaaaaaaa")
    await seen.until(lambda: is_told(seen, reached=True))
    ip(f"addr del {OUTSIDE}/24 dev trtout")
    seen.watch(2, "aaaaaaaa")
    await seen.until(lambda: seen.reach(ALL).reached is True and not seen.reach(ONE).doubtful)
    assert (seen.reach(ONE).reached, seen.reach(ONE).problem) == (None, None)


@pytest.mark.parametrize(
    "damage",
    [
        f"ip link delete {LINK}",
        f"ip link set {LINK} down",
        f"ip addr flush dev {LINK}",
        f"sysctl -qw net.ipv4.conf.{LINK}.forwarding=0",
    ],
)
async def test_what_another_takes_from_the_way_is_made_anew(seen: Seen, damage: str) -> None:
    await seen.switch(1, seen.world.endpoint("blue"), enclave="aaaaaaaa")
    await seen.until(lambda: is_told(seen, reached=True))
    subprocess.run(damage.split(), check=True)
    seen.watch(2, "bbbbbbbb")
    await seen.until(lambda: is_told(seen, reached=True))


async def test_its_addresses_are_none_that_the_host_has_a_route_to(host: NftablesWorld) -> None:
    ip("link add taken0 type bridge")
    ip("link set taken0 up")
    ip("route add 172.31.0.0/16 dev taken0 table 7")
    link = OutsideLink(LINK, avoid=("10.255.0.0/16",))
    await link.have()
    assert link.host_address.startswith("192.168.")
    link.close()
    ip("addr add 192.168.1.1/16 dev taken0")
    ip("route add blackhole 172.16.0.0/12")
    with pytest.raises(OutsideLinkError, match="no private /30 is free"):
        await OutsideLink(LINK + "2", avoid=("10.255.0.0/16",)).have()


_MAKES_ONE = f"""
import asyncio, sys
from agent.probes.outside_link import OutsideLink
async def main():
    link = OutsideLink("{LINK}")
    await link.have()
    kept = await link.sockets(1)
    print("made", flush=True)
    await asyncio.sleep(3600)
asyncio.run(main())
"""


async def test_nothing_of_it_is_left_after_a_kill_nor_after_a_close(host: NftablesWorld) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _MAKES_ONE, stdout=asyncio.subprocess.PIPE
    )
    assert program.stdout is not None
    assert await program.stdout.readline() == b"made\n"
    assert LINK in ip("-br link")
    os.kill(program.pid, signal.SIGKILL)
    await program.wait()
    await gone()
    link = OutsideLink(LINK)
    await link.have()
    link.close()
    await gone()


async def gone() -> None:
    async with asyncio.timeout(WAIT_S):
        while LINK in ip("-br link"):
            await asyncio.sleep(0.02)


async def test_without_the_way_listeners_are_asked_from_this_host_and_it_is_told(
    seen: Seen,
) -> None:
    ip(f"link add {LINK} type bridge")  # somebody else has the name
    await seen.switch(1, seen.world.endpoint("blue"), enclave="aaaaaaaa")
    await seen.until(lambda: seen.reach(ALL).reached is True and seen.reach(ONE).reached is True)
    assert not seen.reach(ALL).by_outside
    with contextlib.suppress(subprocess.CalledProcessError):
        ip(f"link delete {LINK}")
    seen.watch(2, "aaaaaaaa")
    await seen.until(lambda: seen.reach(ALL).reached is True)
