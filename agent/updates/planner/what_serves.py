"""What serves after an update that did not go through, in a sentence without an end. Pure."""

from __future__ import annotations

from agent.model.revision import Wish
from agent.model.update import Update
from agent.updates.planner.types import Situation

STOPPED_SINCE = "nothing serves: the deployment was stopped since"


def serves_on(tag: str | None, update: Update, enclave: str) -> str:
    """Of the enclave that clients are sent to."""
    again = enclave != update.from_enclave or update.switched_at is not None
    return f"{tag} serves again" if again else f"{tag} serves on, nothing changed"


def nothing_serves(update: Update, *, wanted: bool, comes_back: bool) -> str:
    """`wanted`: nobody stopped the deployment; `comes_back`: the old version is started again."""
    if not wanted:
        return STOPPED_SINCE
    if comes_back:
        return f"nothing serves; {update.from_tag} is started again as soon as it fits"
    if update.from_tag is None:
        return "nothing serves: there was no version before it"
    return f"nothing serves: {update.from_tag} was stopped for it"


def what_serves(s: Situation, update: Update, *, comes_back: bool) -> str:
    """At the end of an update of this situation, when nothing of its own is left."""
    route = s.deployment.route.enclave
    serving = s.enclaves.get(route) if route else None
    if serving is None or serving.id == update.enclave:
        wanted = s.deployment.wish is Wish.RUN
        return nothing_serves(update, wanted=wanted, comes_back=comes_back)
    revision = s.revisions.get(serving.revision)
    return serves_on(revision.tag if revision else update.from_tag, update, serving.id)
