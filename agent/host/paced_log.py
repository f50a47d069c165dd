"""Lines that strangers can cause: at most one a second of a kind, with the number left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

_EVERY_S = 1.0


class PacedLog:
    """Of one logger. A kind is a text before its arguments are put in: there are few of them."""

    def __init__(
        self, logger: logging.Logger, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._monotonic = monotonic
        self._last: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def info(self, text: str, *words: object, extra: Mapping[str, object] | None = None) -> None:
        self._log(logging.INFO, text, words, extra)

    def warning(self, text: str, *words: object) -> None:
        self._log(logging.WARNING, text, words, None)

    def error(self, text: str, *words: object, exc_info: BaseException | None = None) -> None:
        self._log(logging.ERROR, text, words, None, exc_info)

    def _log(
        self,
        level: int,
        text: str,
        words: tuple[object, ...],
        extra: Mapping[str, object] | None,
        exc_info: BaseException | None = None,
    ) -> None:
        now = self._monotonic()
        if now - self._last.get(text, -_EVERY_S) < _EVERY_S:
            self._left_out[text] = self._left_out.get(text, 0) + 1
            return
        self._last[text] = now
        more = self._left_out.pop(text, 0)
        self._logger.log(
            level,
            f"{text} (and %d more like it)" if more else text,
            *words,
            *((more,) if more else ()),
            extra=extra,
            exc_info=exc_info,
        )
