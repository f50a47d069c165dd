"""`enclave-agent events`: what happened, and whether the chain of it still holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import click
import msgspec

from agent.cli.client import Client
from agent.cli.exits import Exit, Failure
from agent.cli.options import output
from agent.cli.session import session
from agent.cli.text import safe
from agent.model.event import GENESIS, STORE_RESTORED, hash_of

_AWAY_S = 30.0


@click.command()
@click.option("--after", type=click.IntRange(0), default=0, help="Only what came after this one.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens.")
@click.option("--verify", is_flag=True, help="Check the chain of hashes.")
@output
def events(after: int, follow: bool, verify: bool, output: str) -> None:
    """Show what happened, in order."""
    client = session().client()
    chain = _Chain(whole=after == 0) if verify else None
    for event in _all(client, after) if follow else _kept(client, after):
        if chain is not None:
            chain.add(event)
        click.echo(msgspec.json.encode(event) if output == "json" else line_of(event))
    if chain is not None:
        click.echo(chain.told(), err=True)


def _kept(client: Client, after: int) -> Iterator[dict[str, Any]]:
    """What is there, page by page; the oldest that is kept where more is asked for."""
    while True:
        try:
            page = client.read(f"/v1/events?after={after}&limit=500", dict[str, Any])
        except Failure as failure:
            after = _oldest(failure) - 1
            continue
        yield from page["events"]
        if not page["events"]:
            return
        after = page["next"]


def _all(client: Client, after: int) -> Iterator[dict[str, Any]]:
    """What is there and what comes; goes on where it was when the agent was away."""
    away_since: float | None = None
    while True:
        try:
            with client.stream("/v1/events?follow=1", after) as lines:
                away_since = None
                for event in _frames(lines):
                    after = int(event["sequence"])
                    yield event
        except Failure as failure:
            if failure.exit_code != Exit.UNREACHABLE:
                after = _oldest(failure) - 1
                continue
            now = time.monotonic()
            if away_since is not None and now - away_since > _AWAY_S:
                raise
            away_since = now if away_since is None else away_since
            time.sleep(0.5)


def _oldest(failure: Failure) -> int:
    """The oldest event that is kept, if that is the trouble; else the failure goes on."""
    if failure.oldest is None:
        raise failure
    click.echo(f"events before {failure.oldest} are pruned", err=True)
    return failure.oldest


def _frames(lines: Iterator[bytes]) -> Iterator[dict[str, Any]]:
    kind, data = b"", b""
    for line in lines:
        if line.startswith(b"event: "):
            kind = line[7:]
        elif line.startswith(b"data: "):
            data = line[6:]
        elif not line and data:
            if kind == b"pruned":
                raise Failure(
                    Exit.FAILED, "fell too far behind: the events that follow are pruned"
                )
            yield msgspec.json.decode(data)
            kind, data = b"", b""


def line_of(event: dict[str, Any]) -> str:
    """One line for a person."""
    about = " ".join(
        str(event[key]) for key in ("deployment", "enclave", "update", "gpu") if event.get(key)
    )
    change = " -> ".join(str(event[key]) for key in ("from", "to") if event.get(key))
    reason = f": {event['reason']}" if event.get("reason") else ""
    actor = "" if event.get("actor") == "agent" else f"  by {event.get('actor')}"
    at = str(event["at"])[:19] + "Z"
    return safe(f"{event['sequence']:>6}  {at}  {event['kind']}  {about}  {change}{reason}{actor}")


class _Chain:
    """Checks that each event's hash is its own and the next one's previous."""

    def __init__(self, *, whole: bool) -> None:
        self._whole = whole
        self._previous: str | None = None
        self._first = 0
        self._last = 0
        self._gaps: list[str] = []

    def add(self, event: dict[str, Any]) -> None:
        sequence = int(event["sequence"])
        if hash_of(event) != event["hash"]:
            raise Failure(Exit.FAILED, f"event {sequence} is not what was recorded")
        expected = self._previous
        if expected is None and self._whole and sequence == 1:
            expected = GENESIS
        if expected is not None and event["previous"] != expected:
            raise Failure(Exit.FAILED, f"the chain is broken before event {sequence}")
        if self._last and sequence != self._last + 1:
            if event["kind"] != STORE_RESTORED or sequence < self._last:
                found = f"events are missing between {self._last} and {sequence}"
                raise Failure(Exit.FAILED, found)
            self._gaps.append(f"; what came between {self._last} and {sequence} was lost")
        self._first = self._first or sequence
        self._last = sequence
        self._previous = event["hash"]

    def told(self) -> str:
        if not self._last:
            return "no events to verify"
        return f"the chain holds from event {self._first} to {self._last}{''.join(self._gaps)}"
