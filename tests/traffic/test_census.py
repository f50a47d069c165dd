"""One walk through the kernel's table answers all who ask in the same moment, nobody later."""

import asyncio
from collections import Counter

import pytest

from agent.host.conntrack_netlink import Flow, Tuple
from agent.model.enclave import Endpoint
from agent.traffic.census import Census
from agent.traffic.port import TrafficError

ONE, TWO = Endpoint(address="10.9.0.2", port=443), Endpoint(address="10.9.0.3", port=8080)


def flow(endpoint):
    there = Tuple("192.0.2.7", "127.0.0.1", 40000, 4430)
    return Flow("ESTABLISHED", there, Tuple(endpoint.address, "192.0.2.7", endpoint.port, 40000))


class Kernel:
    """Stands where the kernel is asked; a walk takes until `go` is set."""

    def __init__(self):
        self.flows = []
        self.walks = []  # for whom, or for all
        self.fails = False
        self.go = asyncio.Event()
        self.go.set()

    async def counts(self, only=None):
        self.walks.append(only)
        flows = list(self.flows)
        await self.go.wait()
        if self.fails:
            raise TrafficError("no rights")
        wanted = {(only.address, only.port)} if only else {one.endpoint for one in flows}
        return Counter(one.endpoint for one in flows if one.endpoint in wanted)


@pytest.fixture
def kernel():
    return Kernel()


async def test_all_who_ask_at_once_are_answered_by_one_walk(kernel):
    kernel.flows = [flow(ONE), flow(ONE), flow(TWO)]
    census = Census(kernel)
    counts = await asyncio.gather(*map(census.connections, (ONE, TWO, ONE)))
    assert counts == [2, 1, 2]
    assert len(kernel.walks) == 1


async def test_who_asks_alone_is_told_of_its_own_flows_only(kernel):
    kernel.flows = [flow(ONE), flow(TWO)]
    census = Census(kernel)
    assert await census.connections(ONE) == 1
    assert kernel.walks == [ONE]
    await asyncio.gather(*map(census.connections, (ONE, TWO)))
    assert kernel.walks == [ONE, None]


async def test_an_endpoint_without_flows_has_none(kernel):
    assert await Census(kernel).connections(ONE) == 0


async def test_who_asks_while_a_walk_runs_gets_a_later_one(kernel):
    census = Census(kernel)
    kernel.go.clear()
    early = asyncio.create_task(census.connections(ONE))
    while not kernel.walks:
        await asyncio.sleep(0)
    kernel.flows = [flow(ONE)]
    late = asyncio.create_task(census.connections(ONE))
    while len(kernel.walks) == 1:
        await asyncio.sleep(0)
    kernel.go.set()
    assert (await early, await late) == (0, 1)


async def test_a_walk_that_fails_is_told_to_each_and_the_next_is_tried(kernel):
    census = Census(kernel)
    kernel.fails = True
    asked = (census.connections(ONE), census.connections(TWO))
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in errors] == [TrafficError, TrafficError]
    kernel.fails = False
    assert await census.connections(ONE) == 0


async def test_who_stops_asking_takes_nothing_from_the_others(kernel):
    census = Census(kernel)
    kernel.go.clear()
    kernel.flows = [flow(ONE)]
    gone = asyncio.create_task(census.connections(ONE))
    stays = asyncio.create_task(census.connections(ONE))
    while not kernel.walks:
        await asyncio.sleep(0)
    gone.cancel()
    kernel.go.set()
    assert await stays == 1
    assert len(kernel.walks) == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_not_told(kernel, caplog):
    census = Census(kernel)
    kernel.go.clear()
    kernel.fails = True
    gone = asyncio.create_task(census.connections(ONE))
    while not kernel.walks:
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    kernel.go.set()
    assert await asyncio.gather(census.connections(TWO), return_exceptions=True)
    assert caplog.records == []
