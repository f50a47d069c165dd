"""Where a rollback goes: what the updates of a deployment say of its past. Pure.

The past is a stack. A version that came to serve is put on it; going back to one that lies deeper
takes off what was above it, whichever verb asked for it: so the version before the one that serves
is never one that somebody went back from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from agent.model.reasons import Strategy
from agent.model.update import Decided, Update


@dataclass(frozen=True, slots=True)
class Past:
    """Numbers of revisions. `before`: those below what serves, the nearest first.

    `served`: all that took traffic once, the last to do so first; `tried` only came up, or not
    even that, and were given up.
    """

    before: tuple[int, ...]
    served: tuple[int, ...]
    tried: frozenset[int]


def past_of(updates: Iterable[Update], active: int | None) -> Past:
    """What these updates, newest first, made of a deployment whose active revision this is."""
    newest_first = list(updates)
    served = tuple(dict.fromkeys(_took_traffic(newest_first)))
    tried = frozenset(update.revision for update in newest_first if not update.running)
    return Past(
        before=_before(newest_first, active),
        served=served,
        tried=tried - set(served) - {active},
    )


def _took_traffic(newest_first: list[Update]) -> Iterator[int]:
    for update in newest_first:
        if update.switched_at is not None or update.decided is Decided.COMPLETE:
            yield update.revision
        if update.from_revision is not None:
            yield update.from_revision


def _before(newest_first: list[Update], active: int | None) -> tuple[int, ...]:
    if active is None:
        return ()
    stack = _stack(reversed(newest_first))
    below = stack[: stack.index(active)] if active in stack else stack
    newest = newest_first[0] if newest_first else None
    if newest is not None and _left_nothing_serving(newest) and newest.revision != active:
        below = [*below, active]
    return tuple(reversed(below))


def _left_nothing_serving(update: Update) -> bool:
    """It stopped the old version and failed: so one goes back to what served last."""
    return (
        update.strategy is Strategy.STOP_THEN_START
        and update.old_stopped_at is not None
        and update.decided in (Decided.FAIL, Decided.CANCEL)
    )


def _stack(oldest_first: Iterable[Update]) -> list[int]:
    stack: list[int] = []
    tags: dict[int, str] = {}
    for update in oldest_first:
        if update.from_revision is not None and update.from_tag is not None and not stack:
            stack.append(update.from_revision)
            tags[update.from_revision] = update.from_tag
        if update.decided in (Decided.COMPLETE, Decided.SWITCH):
            _arrive(stack, tags, update)
            tags[update.revision] = update.tag
    return stack


def _arrive(stack: list[int], tags: Mapping[int, str], update: Update) -> None:
    """One of the same tag as what served is a change of it; of a deeper one's, a way back."""
    if update.revision in stack:
        del stack[stack.index(update.revision) + 1 :]
        return
    deeper = [number for number in stack[:-1] if tags[number] == update.tag]
    if deeper and tags[stack[-1]] != update.tag:
        del stack[stack.index(deeper[-1]) + 1 :]
    stack.append(update.revision)
