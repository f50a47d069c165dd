"""One listing of the kernel's table answers all who ask in the same moment, and nobody later."""

import asyncio
import os
import stat

import pytest

from agent.host.commands import CompletedCommand
from agent.model.enclave import Endpoint
from agent.traffic import conntrack
from agent.traffic.census import Census
from agent.traffic.port import TrafficError

ONE, TWO = Endpoint(address="10.9.0.2", port=443), Endpoint(address="10.9.0.3", port=8080)


def flow(endpoint, state="ESTABLISHED", asked="127.0.0.1", asked_port=4430):
    there = f"src=192.0.2.7 dst={asked} sport=40000 dport={asked_port}"
    back = f"src={endpoint.address} dst=192.0.2.7 sport={endpoint.port} dport=40000"
    return f"tcp      6 86400 {state} {there} {back} [ASSURED] mark=0 use=1"


class Kernel:
    """Stands where the tool is run; a listing takes until `go` is set."""

    def __init__(self):
        self.lines = []
        self.listings = 0
        self.asked = []
        self.status = 0
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, argv, *, stdin=b"", timeout_s=10.0):
        self.listings += 1
        self.asked.append(list(argv))
        lines = list(self.lines)
        await self.go.wait()
        return CompletedCommand(self.status, "\n".join(lines).encode(), b"no rights\n")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    tool = tmp_path / "conntrack"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return Kernel()


async def test_all_who_ask_at_once_are_answered_by_one_listing(kernel):
    kernel.lines = [flow(ONE), flow(ONE), flow(TWO), flow(TWO, "TIME_WAIT")]
    census = Census(kernel)
    counts = await asyncio.gather(*map(census.connections, (ONE, TWO, ONE)))
    assert counts == [2, 1, 2]
    assert kernel.listings == 1


async def test_only_translated_flows_are_asked_for_and_counted(kernel):
    probe = flow(ONE, asked=ONE.address, asked_port=ONE.port)
    kernel.lines = [probe, flow(ONE)]
    assert await Census(kernel).connections(ONE) == 1
    assert "--dst-nat" in kernel.asked[0]


async def test_an_endpoint_without_flows_has_none(kernel):
    assert await Census(kernel).connections(ONE) == 0


async def test_who_asks_while_a_listing_runs_gets_a_later_one(kernel):
    census = Census(kernel)
    kernel.go.clear()
    early = asyncio.create_task(census.connections(ONE))
    while kernel.listings == 0:
        await asyncio.sleep(0)
    kernel.lines = [flow(ONE)]
    late = asyncio.create_task(census.connections(ONE))
    while kernel.listings == 1:
        await asyncio.sleep(0)
    kernel.go.set()
    assert (await early, await late) == (0, 1)


async def test_a_listing_that_fails_is_told_to_each_and_the_next_is_tried(kernel):
    census = Census(kernel)
    kernel.status = 1
    asked = (census.connections(ONE), census.connections(TWO))
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(error) for error in errors] == [TrafficError, TrafficError]
    kernel.status = 0
    assert await census.connections(ONE) == 0


async def test_who_stops_asking_takes_nothing_from_the_others(kernel):
    census = Census(kernel)
    kernel.go.clear()
    kernel.lines = [flow(ONE)]
    gone = asyncio.create_task(census.connections(ONE))
    stays = asyncio.create_task(census.connections(ONE))
    while kernel.listings == 0:
        await asyncio.sleep(0)
    gone.cancel()
    kernel.go.set()
    assert await stays == 1
    assert kernel.listings == 1


async def test_a_failure_that_nobody_waits_for_any_more_is_not_told(kernel, caplog):
    census = Census(kernel)
    kernel.go.clear()
    kernel.status = 1
    gone = asyncio.create_task(census.connections(ONE))
    while kernel.listings == 0:
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    kernel.go.set()
    assert await asyncio.gather(census.connections(TWO), return_exceptions=True)
    assert caplog.records == []


def test_flows_that_are_not_open_are_passed_over():
    lines = [flow(ONE, state) for state in ("TIME_WAIT", "CLOSE", "SYN_SENT", "CLOSE_WAIT")]
    assert [one.state for one in conntrack.parse_open("\n".join(lines))] == ["CLOSE_WAIT"]
