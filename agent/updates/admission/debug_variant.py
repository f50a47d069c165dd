"""The debug variant of a release: the same one, with a console and without evidence.

Its command line has `tinfoil-debug=on`, so that it is a release of its own, whose measurement is
another: the publisher makes it under the tag with `-debug` behind it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from agent.model.reasons import DecidedStrategy, Decision, Reason, ReasonCode
from agent.model.release import Release
from agent.model.revision import Revision
from agent.releases.port import ReleaseNotFoundError
from agent.updates.errors import RefusedError
from agent.updates.orders import Change

SUFFIX = "-debug"


def with_variant(before: Revision, change: Change) -> Change:
    """The change with the tag that it comes to; without any where what runs is that already."""
    if change.debug is msgspec.UNSET:
        return change
    if change.tag is msgspec.UNSET and before.debug is change.debug:
        return change
    tag = before.tag if change.tag is msgspec.UNSET else change.tag
    base = tag.removesuffix(SUFFIX)
    return msgspec.structs.replace(change, tag=f"{base}{SUFFIX}" if change.debug else base)


async def required(change: Change, resolved: Callable[[], Awaitable[Release]]) -> Release:
    """The release, if it is of the kind that was asked for. Raises RefusedError."""
    try:
        release = await resolved()
    except RefusedError as error:
        if change.debug is True and isinstance(error.__cause__, ReleaseNotFoundError):
            raise _refused(
                f"there is no debug variant: {error.__cause__}; its publisher makes one: "
                f"release build --debug --tag {change.tag}"
            ) from error
        raise
    if change.debug is msgspec.UNSET or release.debug is change.debug:
        return release
    if change.debug:
        raise _refused(f"{release.repo} {release.tag} is no debug release (tinfoil-debug=on)")
    raise _refused(f"{release.repo} {release.tag} is a debug release; name another by --tag")


def _refused(detail: str) -> RefusedError:
    reason = Reason(code=ReasonCode.RELEASE_INVALID, detail=detail)
    return RefusedError(Decision(strategy=DecidedStrategy.REFUSE, reasons=(reason,)))
