"""A reset that breaks off is tried again, and what the first try cut is counted once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import pytest

from agent.host.commands import CompletedCommand
from agent.model.enclave import Endpoint
from agent.traffic import resetting
from agent.traffic.conntrack import Flow, KernelConnections, Tuple
from agent.traffic.nftables_kernel import NftablesKernel
from agent.traffic.nftables_reset import Resets
from agent.traffic.nftables_rules import Base
from agent.traffic.port import TrafficError

BLUE = Endpoint(address="10.9.0.2", port=8080)


def flow(client_port: int) -> Flow:
    there = Tuple("192.0.2.7", "127.0.0.1", client_port, 8443)
    back = Tuple(BLUE.address, "192.0.2.7", BLUE.port, client_port)
    return Flow("ESTABLISHED", there, back)


class Kernel(KernelConnections):
    """Stands where the kernel is asked. Listings answer in turn: flows, or None for a failure.

    `stuck`: a listing that comes next is never answered.
    """

    def __init__(self, *listings: Sequence[int] | None) -> None:
        self.listings = list(listings)
        self.committed: list[str] = []
        self.stuck = asyncio.Event()

    async def flows_to(self, endpoint: Endpoint) -> list[Flow]:
        if not self.listings:
            self.stuck.set()
            await asyncio.get_running_loop().create_future()
        ports = self.listings.pop(0)
        if ports is None:
            raise TrafficError("no buffer space")
        return list(map(flow, ports))

    async def forget(self, endpoint: Endpoint, left: Iterable[Flow]) -> None: ...

    async def nft(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        self.committed.append(stdin.decode())
        return CompletedCommand(0, b"", b"")


@pytest.fixture(autouse=True)
def no_packet_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resetting, "provoke", lambda _flows: None)


def resets(kernel: Kernel) -> Resets:
    base = Base("table", "br0", "10.9.0.0/24")
    return Resets(base.table, NftablesKernel(base, kernel.nft), asyncio.Lock(), kernel)


async def test_what_a_listing_that_failed_left_untold_is_counted_by_the_next_try() -> None:
    kernel = Kernel([40000, 40001], None, [40001], [])
    one = resets(kernel)
    with pytest.raises(TrafficError):
        await one.reset(BLUE)
    assert await one.reset(BLUE) == 2
    adds = [text for text in kernel.committed if text.startswith("add")]
    assert len(adds) == len(kernel.committed) - len(adds) == 2, "nobody is refused afterwards"


async def test_what_was_cut_before_a_cancellation_is_counted_by_the_next_try() -> None:
    kernel = Kernel([40000, 40001])
    one = resets(kernel)
    trying = asyncio.create_task(one.reset(BLUE))
    async with asyncio.timeout(30):
        await kernel.stuck.wait()
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    kernel.listings = [[], []]
    assert await one.reset(BLUE) == 2
    assert await one.reset(BLUE) == 0, "each is counted once"


async def test_an_endpoint_that_is_given_traffic_begins_anew() -> None:
    """Its address may be another enclave's by then."""
    kernel = Kernel([40000], None, [])
    one = resets(kernel)
    with pytest.raises(TrafficError):
        await one.reset(BLUE)
    one.begin_anew([BLUE])
    assert await one.reset(BLUE) == 0
