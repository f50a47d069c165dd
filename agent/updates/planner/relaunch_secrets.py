"""An enclave whose values are gone for good is launched with the current ones. Pure.

After a reboot nobody may have the values any more that the active revision names, because newer
ones were recorded since. When all current values of its names are here, the enclave gets those, as
a revision of its own: what runs is what is recorded.
"""

from __future__ import annotations

import msgspec

from agent.model.enclave import Enclave
from agent.model.event import EventDraft
from agent.updates.planner.transitions import another_launch
from agent.updates.planner.types import Situation, Write


def with_current_secrets(s: Situation, row: Enclave) -> Write | None:
    """Of the active enclave that was to be launched and lacks values, while no update runs.

    The current ones must be in memory: supplied by somebody since, not only kept at rest. A key
    of the host that fails for a while is no reason to launch something else.
    """
    revision = s.revisions.get(row.revision)
    if revision is None or s.update is not None:
        return None
    versions = {name: s.secrets[name] for name in revision.secrets if name in s.secrets}
    needed = revision.secrets if revision.secret_names is None else revision.secret_names
    if revision.fetches_secrets:
        needed = ()
    current = msgspec.structs.replace(revision, secrets=versions)
    if versions == revision.secrets or not versions.keys() >= set(needed):
        return None
    if not s.values_here.issuperset(current.awaited_secrets.items()):
        return None
    number = s.deployment.last_revision + 1
    gone = ", ".join(sorted(name for name, _ in revision.secrets.items() - s.values_here))
    again = msgspec.structs.replace(another_launch(s, row), revision=number)
    event = EventDraft(
        kind="revision",
        deployment=row.deployment,
        enclave=row.id,
        from_=str(revision.number),
        to=str(number),
        reason=f"its values of {gone} are gone; launched with the current ones",
    )
    return Write(
        deployment=msgspec.structs.replace(
            s.deployment, active_revision=number, last_revision=number
        ),
        put_revision=msgspec.structs.replace(
            revision, number=number, secrets=versions, created_at=s.now
        ),
        put_enclaves=(again,),
        events=(event,),
    )
