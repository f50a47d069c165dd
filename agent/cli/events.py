"""`enclave-agent events`: what happened, and whether the chain of it still holds."""

from __future__ import annotations

import datetime as dt
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import click
import msgspec

from agent.cli import text as texts
from agent.cli.client import Client
from agent.cli.completion import DEPLOYMENT
from agent.cli.event_chain import Chain
from agent.cli.exits import Exit, Failure
from agent.cli.options import Output, output
from agent.cli.session import session

Event = dict[str, Any]

_AWAY_S = 30.0
_AGO = re.compile(r"(\d{1,9})(s|m|min|h|d)")
_UNITS_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@click.command()
@click.option("--after", type=click.IntRange(0), default=0, help="Only what came after this one.")
@click.option(
    "--since",
    metavar="TIME",
    help="Only what is not older: 90s, 10m, 2h, 3d, or a moment such as 2026-01-31T09:00Z.",
)
@click.option("--deployment", "name", type=DEPLOYMENT, metavar="NAME", help="Only of this one.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last so many.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens.")
@click.option("--verify", is_flag=True, help="Check the chain of all of them, shown or not.")
@output
def events(  # noqa: PLR0917 - click passes them by name
    after: int,
    since: str | None,
    name: str | None,
    tail: int | None,
    follow: bool,
    verify: bool,
    output: Output,
) -> None:
    """Show what happened, in order."""
    client = session().client()
    heard = _Heard(
        after=after,
        chain=Chain(whole=after == 0) if verify else None,
        name=name,
        since=None if since is None else moment_of(since),
    )
    rows = heard.wanted(kept(client, after))
    shown = list(rows if tail is None else deque(rows, maxlen=tail))
    if follow:
        _show_lines(shown, output)
        _show_lines(heard.wanted(_all(client, heard.last)), output, headers=False)
    else:
        _show_all(shown, output)
    if heard.chain is not None:
        click.echo(heard.chain.told(), err=True)


def moment_of(text: str) -> dt.datetime:
    """Of `10m`: so long ago; of a moment in ISO 8601: it, in UTC where it says no zone."""
    if found := _AGO.fullmatch(text.strip()):
        return texts.now() - dt.timedelta(seconds=int(found[1]) * _UNITS_S[found[2]])
    try:
        at = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        told = "must be 90s, 10m, 2h, 3d, or a moment such as 2026-01-31T09:00Z"
        raise Failure(Exit.USAGE, f"--since '{text[:40]}': {told}") from None
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


class _Heard:
    """All that was heard, checked; and those of them that are wanted."""

    def __init__(
        self, *, after: int, chain: Chain | None, name: str | None, since: dt.datetime | None
    ) -> None:
        self.last = after
        self.chain = chain
        self._name = name
        self._since = since

    def wanted(self, events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            if self.chain is not None:
                self.chain.add(event)
            self.last = int(event["sequence"])
            if self._is_wanted(event):
                yield event

    def _is_wanted(self, event: Event) -> bool:
        if self._name is not None and event.get("deployment") != self._name:
            return False
        at = self._since
        return at is None or dt.datetime.fromisoformat(str(event["at"])) >= at


def _show_all(shown: list[Event], output: Output) -> None:
    from agent.cli.screen import show, show_json, show_json_lines

    if output.by_line:
        show_json_lines(shown)
    elif output.for_programs:
        show_json({"events": shown})
    else:
        from agent.cli.event_lines import events_table

        show(events_table(shown), output)


def _show_lines(events: Iterable[Event], output: Output, *, headers: bool = True) -> None:
    """One by one, as they come. For programs a value a line, since it has no end."""
    from agent.cli.event_lines import HEADER, line_of
    from agent.cli.screen import show_json_lines

    if output.for_programs:
        show_json_lines(events)
        return
    if headers and output.headers:
        click.echo(HEADER)
    for event in events:
        click.echo(line_of(event))


def kept(client: Client, after: int) -> Iterator[Event]:
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


def _all(client: Client, after: int) -> Iterator[Event]:
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


def _frames(lines: Iterator[bytes]) -> Iterator[Event]:
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
