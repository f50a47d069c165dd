"""How far a guest's boot is, out of the stages that it serves. Pure; the guest is not trusted.

Invariant: any document gives an answer. Stages have stages of their own (a container's pull, start
and healthy), to a depth that the reading of the document bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DONE = frozenset({"ok", "skipped", "warning"})
GPU_ATTESTATION = "gpu-attestation"
CERTIFICATE = "certificate"
CONTAINERS = "containers"
_FIREWALL, _MODELS = "firewall", "models"  # listed in this order, and done in the other

Path = tuple[str, ...]
_MAX_NAME = 100


@dataclass(frozen=True, slots=True)
class Stages:
    """`under_way`: the first that is not done; `before`: the last that is done before it.

    `finished`: every stage and substage that is done, by its names from the top.
    """

    under_way: str | None = None
    before: str | None = None
    finished: frozenset[Path] = frozenset()
    gpus_attested: bool = False


def read_stages(document: dict[str, Any] | None) -> Stages:
    """Of a document of boot stages; nothing is known of None."""
    top = _named((document or {}).get("stages"))
    pending = [name for name, one in top if not _is_done(one)]
    at = [name for name, _ in top].index(pending[0]) if pending else len(top)
    late = pending[:1] == [_FIREWALL] and _MODELS in pending
    finished: set[Path] = set()
    _collect(top, (), finished)
    return Stages(
        under_way=_MODELS if late else next(iter(pending), None),
        before=top[at - 1][0] if at else None,
        finished=frozenset(finished),
        gpus_attested=any(n == GPU_ATTESTATION and one.get("status") == "ok" for n, one in top),
    )


def _named(stages: object) -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(stages, list):
        return []
    found = [one for one in stages if isinstance(one, dict) and isinstance(one.get("name"), str)]
    return [(_printable(one["name"]), one) for one in found]


def _collect(stages: list[tuple[str, dict[str, Any]]], above: Path, into: set[Path]) -> None:
    for name, one in stages:
        path = (*above, name)
        if _is_done(one):
            into.add(path)
        _collect(_named(one.get("stages")), path, into)


def _is_done(stage: dict[str, Any]) -> bool:
    status = stage.get("status")
    return isinstance(status, str) and status in DONE


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else " " for c in name[:_MAX_NAME])
