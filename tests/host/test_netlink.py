from __future__ import annotations

import ipaddress
import socket
import struct

import pytest

from agent.enclaves.link_news import Ours
from agent.host.netlink import Message, Netlink, attributes, messages, text
from agent.traffic.ruleset_news import News, of_links, of_rules
from tests.fakes.netns import ip, own_host

NEW_LINK, NEW_ADDRESS, NEW_ROUTE, NEW_NEIGH, NEW_FILTER, NEW_NETCONF = 16, 20, 24, 28, 44, 80


def attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + b"\0" * (-length % 4)


def packed(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + b"\0" * (-len(body) % 4)


def test_a_datagram_is_taken_apart_up_to_what_is_cut_short() -> None:
    first, second = packed(16, b"abcde"), packed(17, b"xy")
    assert list(messages(first + second)) == [Message(16, b"abcde"), Message(17, b"xy")]
    assert list(messages(first + second[:10])) == [Message(16, b"abcde")]
    assert list(messages(struct.pack("=IHHII", 4, 1, 0, 0, 0))) == []
    assert list(messages(b"")) == []


def test_attributes_without_their_flags() -> None:
    body = bytes(8) + attribute(3, b"enc0\0") + attribute(0x8000 | 5, b"xx")
    assert attributes(body, 8) == {3: b"enc0\0", 5: b"xx"}
    assert text(attributes(body, 8)[3]) == "enc0"
    assert attributes(bytes(8) + b"\x02\0\0\0", 8) == {}
    assert attributes(bytes(8) + b"\xff\0\x01\0", 8) == {}


OURS = Ours("enc0", ipaddress.IPv4Network("10.9.0.0/24"), frozenset({7, 8}))


def link(name: str, index: int) -> Message:
    body = struct.pack("=BxHiII", 0, 1, index, 0, 0) + attribute(3, name.encode() + b"\0")
    return Message(NEW_LINK, body)


def route(destination: str | None) -> Message:
    network = ipaddress.IPv4Network(destination or "0.0.0.0/0")
    body = struct.pack("=8BI", 2, network.prefixlen, 0, 0, 254, 3, 0, 1, 0)
    to = attribute(1, network.network_address.packed) if destination else b""
    return Message(NEW_ROUTE, body + to + attribute(4, struct.pack("=I", 3)))


def neighbour(family: int, index: int, master: int | None = None) -> Message:
    body = struct.pack("=BxHiHBB", family, 0, index, 0x80, 0, 1)
    return Message(NEW_NEIGH, body + (attribute(9, struct.pack("=I", master)) if master else b""))


@pytest.mark.parametrize(
    ("message", "concerns"),
    [
        (link("enc0", 99), True),
        (link("enc-abcdefgh", 99), True),
        (link("renamed", 7), True),
        (link("eth0", 2), False),
        (route("10.9.0.0/24"), True),
        (route("10.9.0.7/32"), True),
        (route("10.0.0.0/8"), False),
        (route("10.9.1.0/24"), False),
        (route(None), False),
        (neighbour(2, 7), True),
        (neighbour(2, 3), False),
        (neighbour(7, 3, master=8), True),
        (neighbour(7, 3, master=4), False),
        (Message(NEW_FILTER, struct.pack("=B3xi12x", 0, 8)), True),
        (Message(NEW_FILTER, struct.pack("=B3xi12x", 0, 3)), False),
        (Message(NEW_ADDRESS, struct.pack("=4BI", 2, 24, 0, 0, 3)), True),
        (Message(NEW_LINK, b""), True),  # what cannot be read is looked at
    ],
)
def test_what_concerns_our_links(message: Message, concerns: bool) -> None:
    assert OURS.concerns(message) is concerns


def rule(kind: int, table: str) -> Message:
    return Message(10 << 8 | kind, b"\x02\0\0\0" + attribute(1, table.encode() + b"\0"))


@pytest.mark.parametrize(
    ("message", "news"),
    [
        (rule(6, "enclave_agent"), News.OURS),
        (rule(14, "enclave_agent_br7"), News.OURS),
        (rule(6, "filter"), News.OTHERS),
        (rule(4, "filter"), News.OTHERS),
        (rule(12, "f2b"), News.NONE),
        (rule(14, "f2b"), News.NONE),
        (rule(15, "filter"), News.NONE),
        (Message(1 << 8 | 6, b"\x02\0\0\0"), News.NONE),
    ],
)
def test_what_concerns_our_table(message: Message, news: News) -> None:
    assert of_rules(message) == news


def test_what_concerns_forwarding() -> None:
    assert of_links(Message(NEW_NETCONF, bytes(4))) == News.OURS
    assert of_links(route("10.0.0.0/8")) == News.NONE
    assert of_links(route(None)) == News.OURS | News.OTHERS


@pytest.mark.root
async def test_what_was_lost_because_too_much_came_is_told() -> None:
    with own_host(), Netlink(0, (1,)) as links:
        links._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for number in range(40):
            ip(f"link add name b{number} type bridge")
        assert await links.heard(1) is None
        assert await links.heard(0.01) == []
        ip("link delete b0")
        heard = await links.heard(1)
        assert heard is not None
        assert {one.kind for one in heard} & {16, 17}
