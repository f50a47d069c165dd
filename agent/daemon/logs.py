"""Logging: event text in lower case plus key-values; one line each, as text or as JSON."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import sys

from agent.config import LogConfig
from agent.host.journal import JournalHandler, leads_to_journal
from agent.host.patient_stderr import PatientStderr

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def set_up(config: LogConfig) -> None:
    """Send every log record of the process to the journal, with its fields, or standard error."""
    handler = _handler(config)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    for noisy in ("aiohttp.access", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _handler(config: LogConfig) -> logging.Handler:
    """`auto`: the journal where standard error leads there, else text."""
    plain = PatientStderr()
    if config.format == "json":
        plain.setFormatter(_Json())
        return plain
    under_journald = leads_to_journal(os.environ, sys.stderr.fileno())
    plain.setFormatter(_Text(with_time=not under_journald))
    if config.format != "auto" or not under_journald:
        return plain
    return JournalHandler(fields=_fields, fallback=plain)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {
        key: value
        for key, value in vars(record).items()
        if key not in _STANDARD and value not in (None, "")
    }


def _at(record: logging.LogRecord) -> str:
    moment = dt.datetime.fromtimestamp(record.created, dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


class _Text(logging.Formatter):
    def __init__(self, *, with_time: bool) -> None:
        super().__init__()
        self._with_time = with_time

    def format(self, record: logging.LogRecord) -> str:
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in _fields(record).items())
        head = f"{_at(record)} " if self._with_time else ""
        line = f"{head}{record.levelname.lower():<7} {record.getMessage()}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def _quoted(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and " " not in text and '"' not in text else json.dumps(text)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        body |= {key: str(value) for key, value in _fields(record).items()}
        if record.exc_info:
            body["traceback"] = self.formatException(record.exc_info)
        return json.dumps(body, ensure_ascii=False)
