"""One call of nvidia-ml-py: its answer, or None for what cannot be had here."""

from __future__ import annotations

from typing import Any

import pynvml


def call(name: str, *arguments: Any, codes: set[int] | None = None) -> Any:
    """The answer; None if this driver, this board or this user cannot have it."""
    function = getattr(pynvml, name, None)
    if function is None:
        return None
    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        if codes is not None:
            codes.add(error.value)
        return None
    except (pynvml.NVMLLibraryMismatchError, ValueError):
        return None


def text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
