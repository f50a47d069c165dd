"""A task that must not end because of a fault of ours: told once, begun again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)
_RESTART_AFTER_S = 1.0


async def restart_on_error(what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do `work` for ever. What it raises is logged, and it is begun again a second later."""
    while True:
        try:
            await work()
        except Exception:  # the owner of the task: told, and begun again
            log.exception("%s broke, begun again", what)
        await asyncio.sleep(_RESTART_AFTER_S)
