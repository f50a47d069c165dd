"""Ways in that are no evidence: what clients, guests, QEMU, the kernel, other programs and
publishers say.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ipaddress
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from aiohttp import web

from agent.api.connection import Connection
from agent.api.credentials import masked
from agent.api.idempotency import parse_key
from agent.api.names import is_ours, names_of_this_host
from agent.api.problems import HttpError
from agent.door.connection import DoorConnection, Room
from agent.door.crowd import EvictingQueue
from agent.door.limits import Limits
from agent.enclaves.monitor import GuestEnd, Monitor
from agent.host import guest_http
from agent.host.conntrack_netlink import counted
from agent.inventory.kernel_messages import overheard
from agent.model.egress import EgressPolicy
from agent.model.enclave import Endpoint
from agent.model.ids import Bdf
from agent.model.pci import PciFunction, PciKind
from agent.probes.answers import (
    judge_boot_stages,
    judge_containers,
    read_document,
    tells_nothing,
)
from agent.probes.stages import read_stages
from agent.probes.told_containers import guest_itself, told_containers
from agent.releases.manifest import read_release
from agent.releases.port import ReleaseError
from agent.traffic.conntrack import OPEN, open_flows
from agent.traffic.egress_rules import EgressRules
from agent.traffic.egress_view import read as read_egress
from agent.traffic.foreign_problems import problems
from agent.traffic.foreign_rules import chains_of, forwarding_tables
from agent.traffic.haproxy_view import read as read_haproxy
from agent.traffic.listing import understood
from agent.traffic.nftables_rules import Base
from agent.traffic.nftables_view import read as read_nftables
from agent.traffic.port import TrafficError
from scripts.fuzzing.entry import Entry
from tests.fakes.release_parts import manifest_members

_PIECES = (1 << 30, 13)
_WANTED = ("web", "db")
_HELD = 1 << 20


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


class _Line(asyncio.Transport):
    """Takes what is written, and is closed when told."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 9)})
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None: ...

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    connection = request.protocol
    assert isinstance(connection, DoorConnection)
    with connection.serving():
        await request.read()
        return web.Response(text=str(request.rel_url))


async def _request(data: bytes) -> None:
    """A connection is served, in one piece and in small ones; nothing of it is left."""
    for size in _PIECES:
        room, crowd = Room(Limits()), cast("Any", EvictingQueue(4, 4))
        line = _Line()
        connection = Connection(web.Server(_answer), room=room, peer="one", crowd=crowd)
        connection.connection_made(line)
        for at in range(0, len(data), size):
            if line.closed:
                break
            connection.data_received(data[at : at + size])
            await asyncio.sleep(0)
            assert room.held.total <= _HELD
        for _ in range(4):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        await asyncio.sleep(0)
        assert room.held.total == 0
        assert len(crowd) == 0


def _http_request(data: bytes) -> None:
    _loop().run_until_complete(_request(data))


async def _guest_answers(data: bytes) -> None:
    for size in _PIECES:
        line = guest_http._Line(1 << 16)
        line.connection_made(_Line())
        loop = asyncio.get_running_loop()
        asked = asyncio.create_task(line.exchange(b"GET", loop.time() + 60, 1 << 12, None))
        await asyncio.sleep(0)
        for at in range(0, len(data), size):
            line.data_received(data[at : at + size])
        line.connection_lost(None)
        exchange = await asked
        assert len(exchange.body) <= 1 << 12


def _http_answer(data: bytes) -> None:
    _loop().run_until_complete(_guest_answers(data))


def _boot_stages(data: bytes) -> None:
    reading = read_document(200, data)
    judge_boot_stages(reading)
    read_stages(reading.document)
    guest_itself(reading.document)


def _containers(data: bytes) -> None:
    reading = read_document(200, data)
    tells_nothing(200, reading)
    told_containers(judge_containers(reading, _WANTED).document)


async def _events(data: bytes) -> None:
    """What the library makes of a line is an object; what is in it is QEMU's to say."""
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(event, dict):
        return
    seen: list[GuestEnd] = []
    monitor = Monitor(Path("/nowhere"), "", seen.append)

    async def execute(*_: object) -> Any:
        return event

    client = cast("Any", SimpleNamespace(execute=execute))
    monitor._hear(client, event)
    await monitor._see_why_it_stopped(client)
    await asyncio.gather(*monitor._looks)
    for one in seen:
        one.detail.encode()


def _qmp(data: bytes) -> None:
    _loop().run_until_complete(_events(data))


@functools.cache
def _base() -> Base:
    return Base("enclave_agent", "encbr0", "10.99.0.0/24")


@functools.cache
def _egress() -> EgressRules:
    return EgressRules("egress_enclave_agent", "encbr0", (), EgressPolicy())


def _connections(data: bytes) -> None:
    counted([data], OPEN)
    open_flows([data], Endpoint(address="127.0.0.2", port=8080))


def _foreign(data: bytes) -> None:
    with understood("nft"):
        items = json.loads(data)["nftables"]
        forwarding_tables(items)
        guests = ipaddress.IPv4Network("10.99.0.0/24")
        problems(chains_of(items), bridge="encbr0", guests=guests, uplinks=("eth0",))


def _haproxy(data: bytes) -> None:
    routes, _, rest = data.decode("latin-1").partition("\0")
    members, _, statistics = rest.partition("\0")
    read_haproxy(routes, members, statistics)


@functools.cache
def _functions() -> tuple[PciFunction, ...]:
    bdf = Bdf("0000:3b:00.0")
    return (
        PciFunction(bdf=bdf, kind=PciKind.GPU, location="3b/00.0", ports=(Bdf("0000:3a:01.0"),)),
    )


def _words(data: bytes) -> None:
    """Tokens that a request carries: a key, a host, and values that may be credentials."""
    text = data.decode("latin-1")
    name, _, value = text.partition("=")
    is_ours(text, names_of_this_host(("status.example",), Path("/nowhere")))
    assert set(masked({name: value})) == {name}
    with contextlib.suppress(HttpError):
        parse_key(text)


def _listing(*items: dict[str, Any]) -> bytes:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *items]}).encode()


def _elements() -> Iterator[bytes]:
    element = {"elem": {"val": {"concat": ["192.0.2.1", 443]}, "comment": "web 0"}}
    chain = {"family": "inet", "table": "t", "name": "c", "hook": "forward", "policy": "drop"}
    rule = {
        "family": "inet",
        "table": "t",
        "chain": "c",
        "comment": "x",
        "expr": [
            {
                "match": {
                    "op": "==",
                    "left": {"payload": {"protocol": "ip", "field": "saddr"}},
                    "right": {"prefix": {"addr": "10.0.0.0", "len": 8}},
                }
            },
            {
                "vmap": {
                    "key": {"ct": {"key": "state"}},
                    "data": {"set": [["new", {"drop": None}]]},
                }
            },
            {"accept": None},
        ],
    }
    yield _listing({"set": {"name": "listeners", "elem": [element]}})
    yield _listing({"map": {"name": "exact", "elem": [[element, {"concat": ["10.0.0.2", 80]}]]}})
    yield _listing({"chain": chain}, {"rule": rule})


_CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"
# A translated flow of TCP, as a kernel (6.18) told it: 127.0.0.1 to 127.0.0.9:80, from 127.0.0.2.
_CONNTRACK = bytes.fromhex(
    "020000003400018014000180080001007f000001080002007f0000091c0002800500010006000000"
    "06000200ce7a000006000300005000003400028014000180080001007f000002080002007f000001"
    "1c0002800500010006000000060002001f90000006000300ce7a000008000300000001ae08000800"
    "0000000008000c00f55f558e08000b0000000001080007000006977f300004802c00018005000100"
    "03000000050002000a000000050003000a00000006000400230000000600050023000000"
)
_STAGES = {
    "stages": [
        {"name": "network", "status": "ok", "detail": "up"},
        {"name": "containers", "status": "pending", "stages": [{"name": "web", "status": "ok"}]},
    ],
    "completed_at": "2026-01-01T00:00:00Z",
}
_ROWS = {
    "containers": [
        {"name": "web", "status": "running", "health": {"status": "healthy"}, "played": True},
        {"name": "db", "status": "exited", "exit_code": 1, "error": "no", "oom_killed": False},
    ]
}
_STATISTICS = b"# pxname,svname,scur,status,type,addr\nfront,FRONTEND,1,OPEN,0,\n"

OUTSIDE: dict[str, Entry] = {
    "http_request": Entry(
        _http_request,
        lambda: [
            b"GET /status?x=1 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.0\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKS,
            b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n{}",
        ],
        (),
    ),
    "http_answer": Entry(
        _http_answer,
        lambda: [
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
            b"HTTP/1.1 103 x\r\n\r\nHTTP/1.0 503 y\r\nTransfer-Encoding: chunked\r\n\r\n"
            + _CHUNKS,
        ],
        (),
    ),
    "boot_stages": Entry(_boot_stages, lambda: [json.dumps(_STAGES).encode()], ()),
    "containers": Entry(
        _containers,
        lambda: [json.dumps(_ROWS).encode(), b'{"unavailable": "starting", "containers": []}'],
        (),
    ),
    "qmp": Entry(
        _qmp,
        lambda: [
            b'{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}',
            b'{"event": "STOP", "timestamp": {"seconds": 1}, "status": "guest-panicked"}',
            b'{"event": "GUEST_PANICKED", "data": {"action": "pause"}}',
        ],
        (),
    ),
    "nft_table": Entry(
        lambda data: read_nftables(data, _base()), lambda: list(_elements()), (TrafficError,)
    ),
    "nft_egress": Entry(
        lambda data: read_egress(data, _egress()),
        lambda: list(_elements()),
        (TrafficError,),
    ),
    "nft_foreign": Entry(_foreign, lambda: list(_elements()), (TrafficError,)),
    "conntrack": Entry(
        _connections,
        lambda: [_CONNTRACK],
        (ValueError,),
    ),
    "haproxy": Entry(_haproxy, lambda: [b"\0\0" + _STATISTICS], (TrafficError,)),
    "kernel_message": Entry(
        lambda data: overheard(data, _functions()),
        lambda: [
            b"4,1,2,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.\n",
            b"3,1,2,-;vfio-pci 0000:3b:00.0: not ready 65535ms after bus reset; giving up\n",
            b"3,1,2,-;DMAR: DRHD: handling fault status reg 2\n SUBSYSTEM=pci\n",
        ],
        (),
    ),
    "manifest": Entry(
        lambda data: read_release("owner/name", "v1.0.0", data),
        lambda: [json.dumps(manifest_members()).encode()],
        (ReleaseError,),
    ),
    "token": Entry(
        _words,
        lambda: [b"API_KEY=hunter2", b"localhost:8470", b"0f8fad5b-d9cb-469f-a165-70867728950e"],
        (),
    ),
}
