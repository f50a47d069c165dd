"""Another process with the store open: does one thing, says so, and waits to be killed.

    python store_process.py FILE claim HOLDER KEY...   claims the first free key
    python store_process.py FILE put NAME              puts a deployment
    python store_process.py FILE hold                  holds the write lock
    python store_process.py FILE count                 counts and appends events without end

Each prints one line when it is done (`hold`: when it holds; `count`: the number, each time), then
reads stdin until its end.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from agent.host.clock import RealClock
from agent.model.event import EventDraft
from agent.model.lease import Claim
from agent.store.port import ClaimTakenError, Transaction
from agent.store.sqlite import SqliteStore
from simulator.rows import deployment


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _claim_first_free(t: Transaction, holder: str, keys: list[str]) -> str:
    for key in keys:
        try:
            t.claim(Claim(kind="gpu", key=key, holder=holder))
        except ClaimTakenError:
            continue
        return key
    return "none"


def _count(t: Transaction, number: int) -> None:
    t.set_meta("count", str(number))
    t.append(EventDraft(kind="note", reason=str(number)))


def _hold(t: Transaction) -> None:
    t.put_deployment(deployment("never"))
    _say("holding")
    sys.stdin.read()
    raise SystemExit


async def _main(file: str, verb: str, *rest: str) -> None:
    store = await SqliteStore.open(Path(file), RealClock().now)
    if verb == "claim":
        _say("ready")
        sys.stdin.readline()
        holder, *keys = rest
        _say(await store.transact(lambda t: _claim_first_free(t, holder, keys)))
    elif verb == "put":
        await store.transact(lambda t: t.put_deployment(deployment(rest[0])))
        _say("done")
    elif verb == "count":
        for number in itertools.count(1):
            await store.transact(lambda t, n=number: _count(t, n))
            _say(str(number))
    else:
        await store.transact(_hold)
    sys.stdin.read()


asyncio.run(_main(*sys.argv[1:]))
