"""Which GPUs are the agent's to take: what the configuration names, and the host's own displays.

Pure. A GPU is named by its UUID, its PCI address (with the domain or without), the slot that it is
in (as the firmware labels it), or its model: words that follow each other in its name, or its PCI
device id. `slot:` and `model:` before a word say which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from agent.model.ids import Bdf

GPU_ADDRESS = r"([0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
_ADDRESS = re.compile(GPU_ADDRESS)
_UUID = re.compile(r"gpu-[0-9a-z-]+")


class GpuFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a GPU may be named by. `display`: how it drives a display of the host's, if it does."""

    bdf: Bdf
    uuid: str | None = None
    slot: str | None = None
    names: tuple[str, ...] = ()
    device: int | None = None
    display: str | None = None


class GpuSelection(msgspec.Struct, frozen=True, kw_only=True):
    """As configured. `include` None: every GPU."""

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()


EVERY_GPU = GpuSelection()


def left_alone(selection: GpuSelection, gpus: Iterable[GpuFacts]) -> dict[Bdf, str]:
    """Those that are not to be taken, and why."""
    every = tuple(gpus)
    unseen = [word for word in unmatched(selection.exclude, every) if _is_uuid(word)]
    found = {}
    for gpu in every:
        why = _why_left(selection, gpu, unseen)
        if why is not None:
            found[gpu.bdf] = why
    return found


def _why_left(selection: GpuSelection, gpu: GpuFacts, unseen: list[str]) -> str | None:
    for word in selection.exclude:
        if _names(word, gpu):
            return f"gpus.exclude names it ({word})"
    if unseen and gpu.uuid is None:
        return (
            f"gpus.exclude names {unseen[0]}, which no GPU is known by, and the UUID of this one "
            "is not known: name it by its address"
        )
    if selection.include is not None and not any(_names(w, gpu) for w in selection.include):
        return "gpus.include does not name it"
    if gpu.display is not None and selection.include is None:
        return f"{gpu.display}; name it in gpus.include if guests are to have it"
    return None


def unmatched(words: Iterable[str], gpus: Iterable[GpuFacts]) -> tuple[str, ...]:
    """Words that name nothing that is here."""
    every = tuple(gpus)
    return tuple(word for word in words if not any(_names(word, gpu) for gpu in every))


def selection_faults(selection: GpuSelection, gpus: Iterable[GpuFacts]) -> Mapping[str, str]:
    """By setting: the words of it that name no GPU of this host."""
    every = tuple(gpus)
    told = {
        "gpus.include": unmatched(selection.include or (), every),
        "gpus.exclude": unmatched(selection.exclude, every),
    }
    return {name: ", ".join(words) for name, words in told.items() if words}


def _is_uuid(word: str) -> bool:
    return _UUID.fullmatch(word.lower()) is not None


def _names(word: str, gpu: GpuFacts) -> bool:
    text = word.strip().lower()
    kind, _, rest = text.partition(":")
    if kind == "slot":
        return gpu.slot is not None and gpu.slot.lower() == rest.strip()
    if kind == "model":
        return _is_model(rest.strip(), gpu)
    if _is_uuid(text):
        return gpu.uuid is not None and gpu.uuid.lower() == text
    if _ADDRESS.fullmatch(text):
        return gpu.bdf in (text, f"0000:{text}")
    return (gpu.slot is not None and gpu.slot.lower() == text) or _is_model(text, gpu)


def _is_model(text: str, gpu: GpuFacts) -> bool:
    if gpu.device is not None and text.removeprefix("10de:") == f"{gpu.device:04x}":
        return True
    wanted = text.removeprefix("nvidia ").split()
    return bool(wanted) and any(_follow(wanted, name.lower().split()) for name in gpu.names)


def _follow(wanted: list[str], words: list[str]) -> bool:
    places = range(len(words) - len(wanted) + 1)
    return any(words[at : at + len(wanted)] == wanted for at in places)
