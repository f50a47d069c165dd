"""Connections that the kernel carries to an endpoint, from its connection table.

A flow counts from the guest's answer to its SYN until both sides have closed: a client that has
only closed its own half still waits for the rest. (Where that client's FIN was sent twice, the
kernel takes the second for the guest's and the flow for ended; it still translates.)

Only what was translated, or what leads to one endpoint, crosses from the kernel: what others have
in the table costs its walk and nothing here (`host/conntrack_netlink.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from agent.errors import describe
from agent.host.conntrack_netlink import (
    DST_NAT,
    SEEN_REPLY,
    Flow,
    Tuple,
    counted,
    delete,
    flow_of,
    told,
)
from agent.host.threads import finish_in_thread
from agent.model.enclave import Endpoint
from agent.traffic.port import TrafficError

T = TypeVar("T")
OPEN = frozenset({"SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"})
_OVER = frozenset({"CLOSE", "SYN_SENT"})  # was reset; was never answered
_NOBODY = ("0.0.0.0", 0)  # noqa: S104 - an endpoint that answers nobody
_MISSING = "connections cannot be counted: the kernel has no nf_conntrack_netlink for this process"

__all__ = ["OPEN", "Flow", "KernelConnections", "Tuple", "missing", "open_flows"]


def missing() -> str | None:
    """Why flows cannot be listed here, or None."""
    try:
        list(told(DST_NAT, _NOBODY))
    except OSError as error:
        return f"{_MISSING} ({error.strerror})"
    return None


def open_flows(entries: Iterable[bytes], endpoint: Endpoint) -> list[Flow]:
    """Those that are open and were translated to the endpoint; our own probes are not.

    Raises ValueError for one that is not understood: one that is not counted would be cut.
    """
    return [flow for flow in _translated(entries, endpoint) if flow.state in OPEN]


def _translated(entries: Iterable[bytes], endpoint: Endpoint) -> Iterator[Flow]:
    """Of a kernel that knows no filter more than these come."""
    for entry in entries:
        flow = flow_of(entry)
        if flow and flow.is_translated and flow.endpoint == (endpoint.address, endpoint.port):
            yield flow


class KernelConnections:
    """This network namespace's. Everything raises TrafficError."""

    async def flows_to(self, endpoint: Endpoint) -> list[Flow]:
        """The open flows that were translated to the endpoint."""
        wanted = (endpoint.address, endpoint.port)
        return await _asked(lambda: open_flows(told(DST_NAT | SEEN_REPLY, wanted), endpoint))

    async def counts(self, only: Endpoint | None = None) -> Counter[tuple[str, int]]:
        """Endpoint → the open flows that were translated to it: of one, or whoever's it is."""
        wanted = (only.address, only.port) if only else None
        return await _asked(lambda: counted(told(DST_NAT | SEEN_REPLY, wanted), OPEN))

    async def forget(self, endpoint: Endpoint, left: Iterable[Flow]) -> None:
        """Delete the endpoint's flows that were reset, and those left that could not be.

        Idempotent. A flow whose SYN nobody answered goes too: its client sends the SYN again, and
        that one goes where the listener leads now.
        """
        states = _OVER | {flow.state for flow in left}
        wanted = (endpoint.address, endpoint.port)

        def work() -> None:
            over = [one for one in _translated(told(DST_NAT, wanted), endpoint)]
            delete(one for one in over if one.state in states)

        await _asked(work)


async def _asked(work: Callable[[], T]) -> T:
    try:
        return await finish_in_thread(work)
    except (OSError, ValueError) as error:
        raise TrafficError(f"connections cannot be counted: {describe(error)}") from error
