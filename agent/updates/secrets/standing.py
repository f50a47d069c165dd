"""How each secret of a deployment stands: recorded, given to what serves, needed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from agent.model.revision import Revision


class SecretState(msgspec.Struct, frozen=True, kw_only=True):
    """One secret; see `agent.wire.answers.SecretView`. No value and no digest is in it."""

    name: str
    version: int | None
    given: int | None
    here: bool | None
    declared: bool

    @property
    def how(self) -> str:
        """For a person: the first thing that is not as it should be, else that it is."""
        if self.here is False:
            return "its value is not on this host any more: set it again"
        if self.version is None and self.given is None:
            return "declared by the release, and not recorded"
        if self.version is None:
            return "forgotten: what runs has it until a relaunch"
        if self.given is None:
            return "recorded: a relaunch gives it"
        if self.version != self.given:
            return "what runs has another value: a relaunch gives this one"
        return "given to what runs" if self.declared else "given, though the release names it not"


def standing(
    recorded: Mapping[str, int], revision: Revision | None, gone: Collection[str]
) -> tuple[SecretState, ...]:
    """Of all names that are recorded, were given, or are declared; sorted.

    `recorded`: name → current version. `revision`: the one that serves or served last. `gone`:
    recorded names whose value is not on this host.
    """
    given = revision.secrets if revision else {}
    declared = set(revision.secret_names or ()) if revision else set()
    fetched = revision is not None and revision.fetches_secrets
    needed = set() if fetched else declared
    return tuple(
        SecretState(
            name=name,
            version=recorded.get(name),
            given=given.get(name),
            here=None if name not in recorded else name not in gone,
            declared=name in declared,
        )
        for name in sorted({*recorded, *given, *needed})
    )
