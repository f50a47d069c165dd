"""Of the kernel's connections only those that are asked for cross to us, whoever has others."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest

from agent.host import netlink
from agent.host.conntrack_netlink import DST_NAT, SEEN_REPLY, counted, delete, flow_of, told
from simulator.connection_table import fill
from tests.fakes.netns import own_host

OTHERS = 3000
OURS, PROBES = 40, 3
ENDPOINT, LISTENER = ("127.0.0.2", 8080), ("127.0.0.9", 80)
NAT = f"""add table ip ours
add chain ip ours out {{ type nat hook output priority -100; }}
add rule ip ours out ip daddr {LISTENER[0]} tcp dport {LISTENER[1]} dnat to 127.0.0.2:8080
"""


@pytest.fixture
def table() -> Iterator[None]:
    """A host whose table has many flows of others, some of ours, and probes of ours."""
    with own_host(), contextlib.ExitStack() as stack:
        subprocess.run(["nft", "-f", "-"], input=NAT, text=True, check=True)
        server = stack.enter_context(socket.create_server(ENDPOINT, backlog=OURS))
        for place in [LISTENER] * OURS + [ENDPOINT] * PROBES:
            stack.enter_context(socket.create_connection(place))
            stack.enter_context(server.accept()[0])
        fill(OTHERS)
        yield


@pytest.mark.root
def test_others_cost_no_byte_and_only_what_was_translated_is_counted(
    table: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[int] = []

    class Counting(socket.socket):
        def recv(self, *arguments: int) -> bytes:
            data = super().recv(*arguments)
            received.append(len(data))
            return data

    monkeypatch.setattr(netlink.socket, "socket", Counting)
    entries = list(told(DST_NAT | SEEN_REPLY, ENDPOINT))
    assert len(entries) == OURS
    assert sum(received) < OURS * 400, "bytes of others crossed"
    received.clear()
    assert counted(told(DST_NAT | SEEN_REPLY), {"ESTABLISHED"}) == {ENDPOINT: OURS}
    assert sum(received) < OURS * 400
    assert list(told(DST_NAT, ("127.0.0.2", 8081))) == []


@pytest.mark.root
def test_what_is_deleted_is_gone_and_another_of_the_same_ends_stays(table: None) -> None:
    flows = [flow for entry in told(DST_NAT, ENDPOINT) if (flow := flow_of(entry))]
    first, *others = flows
    delete([first])
    delete([first])  # gone: nothing to do
    assert len(list(told(DST_NAT, ENDPOINT))) == OURS - 1
    stale = [type(one)(one.state, one.original, one.reply, b"\0\0\0\1") for one in others]
    delete(stale)  # by the kernel's id these are not the ones that are there
    assert len(list(told(DST_NAT, ENDPOINT))) == OURS - 1
    delete(others)
    assert list(told(DST_NAT, ENDPOINT)) == []


def entry(state: int, *, zone: bool = False, cut: int = 0) -> bytes:
    """As a kernel tells it: 192.0.2.7:5 to 127.0.0.9:80, answered by 127.0.0.2:8080."""

    def attribute(kind: int, data: bytes) -> bytes:
        padded = data + bytes(-len(data) % 4)
        return struct.pack("=HH", 4 + len(data), kind) + padded

    def path(kind: int, source: str, destination: str, *ports: int) -> bytes:
        ends = attribute(1, socket.inet_aton(source)) + attribute(2, socket.inet_aton(destination))
        numbers = [attribute(n, struct.pack("!H", port)) for n, port in enumerate(ports, 2)]
        protocol = attribute(1, b"\6") + b"".join(numbers)
        of_zone = attribute(3, b"\0\1") if zone else b""
        nested = attribute(0x8001, ends) + attribute(0x8002, protocol) + of_zone
        return attribute(kind | 0x8000, nested)

    there = path(1, "192.0.2.7", LISTENER[0], 5, LISTENER[1])
    back = path(2, ENDPOINT[0], "192.0.2.7", ENDPOINT[1], 5)
    info = attribute(0x8004, attribute(0x8001, attribute(1, bytes([state]))))
    whole = b"\2\0\0\0" + there + back + attribute(3, bytes(4)) + info
    return whole[cut:]


@pytest.mark.parametrize("zone", [False, True])
def test_an_entry_is_read_in_the_usual_order_and_in_any_other(zone: bool) -> None:
    flow = flow_of(entry(3, zone=zone))
    assert flow is not None
    assert (flow.state, flow.endpoint, flow.is_translated) == ("ESTABLISHED", ENDPOINT, True)
    assert (flow.original.source, flow.original.source_port) == ("192.0.2.7", 5)
    assert counted([entry(3, zone=zone), entry(7, zone=zone)], {"ESTABLISHED"}) == {ENDPOINT: 1}


def test_one_that_is_not_understood_is_told_and_one_of_another_protocol_passed_over() -> None:
    info = entry(3)[-16:]
    with pytest.raises(ValueError, match="not understood"):
        flow_of(b"\2\0\0\0" + info)
    assert flow_of(b"\2\0\0\0") is None
    assert counted([b""], {"ESTABLISHED"}) == {}
