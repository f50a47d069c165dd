"""Connections that the kernel carries to an endpoint, from its connection table.

The `conntrack` tool is asked, or the kernel's own file where the tool is missing; both print the
same words. A flow counts from the guest's answer to its SYN until both sides have closed: a client
that has only closed its own half still waits for the rest. (Where that client's FIN was sent
twice, the kernel takes the second for the guest's and the flow for ended; it still translates.)
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.host.commands import CommandError, RunCommand
from agent.model.enclave import Endpoint
from agent.traffic.listing import understood
from agent.traffic.port import TrafficError

OPEN = frozenset({"SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"})
MISSING = (
    "connections cannot be counted: install the conntrack tool (package `conntrack`), or run a "
    "kernel that has /proc/net/nf_conntrack"
)
_PROC = Path("/proc/net/nf_conntrack")
_WORD = re.compile(r"(src|dst|sport|dport)=(\S+)")
_STATE = re.compile(r"\btcp\s+6\s+\d+\s+([A-Z_]+)\s")


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a flow."""

    source: str
    destination: str
    source_port: int
    destination_port: int


@dataclass(frozen=True, slots=True)
class Flow:
    """A TCP flow: what its client sends, and what the answers look like before translation."""

    state: str
    original: Tuple
    reply: Tuple

    def goes_to(self, endpoint: Endpoint) -> bool:
        """Whether it was translated on its way to the endpoint; our own probes are not."""
        return self.is_translated and self.endpoint == (endpoint.address, endpoint.port)

    @property
    def endpoint(self) -> tuple[str, int]:
        """Who answers."""
        return self.reply.source, self.reply.source_port

    @property
    def is_translated(self) -> bool:
        """Whether that is another than was asked."""
        return self.endpoint != (self.original.destination, self.original.destination_port)


def parse_open(text: str) -> list[Flow]:
    """The open TCP flows of a listing.

    All others are passed over unread: a busy host has thousands in TIME_WAIT. Raises TrafficError
    for an open one that is not understood: one that is not counted would be cut.
    """
    with understood("conntrack"):
        return _open(text)


def _open(text: str) -> list[Flow]:
    flows = []
    for line in text.splitlines():
        state = _STATE.search(line)
        if state is None or state.group(1) not in OPEN:
            continue
        words = _WORD.findall(line)
        if len(words) < 8:
            continue
        flows.append(Flow(state.group(1), _tuple(words[:4]), _tuple(words[4:8])))
    return flows


def _tuple(words: list[tuple[str, str]]) -> Tuple:
    fields = dict(words)
    return Tuple(fields["src"], fields["dst"], int(fields["sport"]), int(fields["dport"]))


def missing() -> str | None:
    """Why flows cannot be listed here, or None."""
    return None if shutil.which("conntrack") or _PROC.exists() else MISSING


async def flows_to(endpoint: Endpoint, run_command: RunCommand) -> list[Flow]:
    """The open flows that were translated to the endpoint."""
    flows = await _open_flows(run_command, "--reply-src", endpoint.address)
    return [flow for flow in flows if flow.goes_to(endpoint)]


async def translated(run_command: RunCommand) -> list[Flow]:
    """The open flows that were translated to any endpoint, ours or not."""
    flows = await _open_flows(run_command, "--dst-nat")
    return [flow for flow in flows if flow.is_translated]


async def _open_flows(run_command: RunCommand, *wanted: str) -> list[Flow]:
    """More than is wanted where the tool is missing. Raises TrafficError."""
    if shutil.which("conntrack"):
        try:
            result = await run_command(["conntrack", "-L", "-p", "tcp", *wanted])
        except CommandError as error:
            raise TrafficError("connections cannot be counted") from error
        if result.status != 0:
            raise TrafficError(f"conntrack -L failed: {result.complaint}")
        text = result.stdout.decode(errors="replace")
    elif _PROC.exists():
        text = _PROC.read_text()
    else:
        raise TrafficError(MISSING)
    return parse_open(text)


async def forget(endpoint: Endpoint, left: Iterable[Flow], run_command: RunCommand) -> None:
    """Delete the endpoint's flows that were reset, and those left that could not be. Idempotent.

    A flow whose SYN nobody answered goes too: its client sends the SYN again, and that one goes
    where the listener leads now. Without the tool the flows expire, within two minutes at most.
    """
    if not shutil.which("conntrack"):
        return
    base = ["conntrack", "-D", "-p", "tcp", "--dst-nat", endpoint.address]
    base += ["--reply-port-src", str(endpoint.port), "--state"]
    for state in sorted({"CLOSE", "SYN_SENT", *(flow.state for flow in left)}):
        with contextlib.suppress(CommandError):
            await run_command([*base, state])
