"""A tag whose contents are others than when a deployment took them: refused unless accepted."""

from __future__ import annotations

import msgspec

from agent.model.reasons import Reason, ReasonCode
from agent.model.revision import Revision
from agent.store.port import Reader
from agent.updates.admission.admit import Ask

_SHOWN = 12  # digits of a digest, enough to tell two apart


def taken_before(tx: Reader, before: Revision, tag: str) -> str | None:
    """The digest of what the deployment took under a tag; None: it never did.

    Of a tag that serves, what serves; else what was taken last.
    """
    rows = [before, *sorted(tx.revisions(before.deployment), key=lambda row: -row.number)]
    same = (row for row in rows if (row.repo, row.tag) == (before.repo, tag))
    return next((row.release_digest for row in same), None)


def with_moved_tag(ask: Ask, taken: str | None, *, accepted: bool) -> Ask:
    """With the refusal of contents that moved or, where they are accepted, with a warning."""
    release = ask.release
    if taken is None or taken == release.digest:
        return ask
    moved = (
        f"the contents of {release.tag} are others than those that were taken: manifest SHA-256 "
        f"{release.digest[:_SHOWN]}…, before {taken[:_SHOWN]}…"
    )
    if accepted:
        return msgspec.structs.replace(ask, warnings=(*ask.warnings, moved))
    detail = (
        f"{moved}; to take them: --accept-moved-tag; to keep those that are recorded, say no tag"
    )
    reason = Reason(code=ReasonCode.TAG_MOVED, detail=detail)
    return msgspec.structs.replace(ask, obstacles=(reason, *ask.obstacles))
