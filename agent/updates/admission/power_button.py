"""What is recorded of images' power buttons, and what follows for a stop.

A row of the store's meta table an image version: it is asked for by its key alone, outlives every
deployment, and one that cannot be read counts as nothing known. See `model.power_button`.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping

import msgspec

from agent.model.clock import Instant
from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.model.ids import DeploymentName
from agent.model.power_button import ButtonRecord, Press
from agent.model.reasons import Reason, ReasonCode
from agent.model.revision import Revision
from agent.releases.layout import hears_power_button
from agent.store.port import Reader, Transaction


def read_buttons(tx: Reader, revisions: Iterable[Revision]) -> dict[str, ButtonRecord]:
    """What is recorded of the images of these revisions, by version."""
    versions = {revision.image_version for revision in revisions}
    return {version: _record(tx, version) for version in versions if version is not None}


def is_deaf(revision: Revision, buttons: Mapping[str, ButtonRecord], now: dt.datetime) -> bool:
    """Whether a guest of this revision would be asked to power off in vain. Pure.

    Of a row of an older agent the image's version is not known: it is asked.
    """
    version = revision.image_version
    if version is None:
        return False
    known = buttons.get(version, ButtonRecord())
    return not hears_power_button(version) or known.is_deaf(revision.deployment, now)


def learn(tx: Transaction, row: Enclave, press: Press, now: Instant) -> None:
    """Remember what came of a press, with an event if that is news."""
    revision = tx.revision(row.deployment, row.revision)
    version = revision.image_version if revision else None
    if version is None:
        return
    before = _record(tx, version)
    after = before.after(press, row.deployment, now.wall)
    if after == before:
        return
    tx.set_meta(_key(version), msgspec.json.encode(after).decode())
    event = EventDraft(
        kind="image",
        deployment=row.deployment,
        enclave=row.id,
        to=f"power button {press}",
        reason=f"image version {version}",
    )
    tx.append(event)


def unclean_stop(tx: Reader, name: DeploymentName, now: dt.datetime) -> Reason | None:
    """What is to be known before an update: that what runs cannot be stopped cleanly."""
    for revision in running_revisions(tx, name):
        volumes = revision.demand.writable_volumes
        if volumes and is_deaf(revision, read_buttons(tx, [revision]), now):
            return Reason(
                code=ReasonCode.UNCLEAN_STOP,
                detail=f"unclean stop: image version {revision.image_version} does not hear the "
                f"power button, so {revision.tag} is ended as by a power cut; it has {volumes} "
                f"writable volume{'s' if volumes > 1 else ''}",
            )
    return None


def running_revisions(tx: Reader, name: DeploymentName) -> list[Revision]:
    """Those that a deployment has an enclave of, the oldest enclave's first."""
    found = [tx.revision(name, row.revision) for row in tx.enclaves(name)]
    return [revision for revision in found if revision is not None]


def _record(tx: Reader, version: str) -> ButtonRecord:
    text = tx.meta(_key(version))
    try:
        return msgspec.json.decode(text or "{}", type=ButtonRecord)
    except msgspec.DecodeError:
        return ButtonRecord()


def _key(version: str) -> str:
    return f"power_button {version}"
