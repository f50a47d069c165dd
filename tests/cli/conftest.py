"""An API over the engine in memory, and two ways to run the command line against it."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from agent.cli import cli
from tests.fakes.api_server import ThreadedApi


@dataclass
class Agent:
    """`call` in this process; `process` as the shell would."""

    api: ThreadedApi

    def call(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        argv = ["--socket", str(self.api.path), *arguments]
        return CliRunner(catch_exceptions=False).invoke(cli, argv, input=stdin)

    def popen(
        self, *arguments: str, terminal: int | None = None, environ: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        settings = {"ENCLAVE_AGENT_SOCKET": str(self.api.path), "NO_COLOR": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "agent", *arguments],
            env={**os.environ, **settings, **(environ or {})},
            text=True,
            stdout=subprocess.PIPE if terminal is None else terminal,
            stderr=subprocess.PIPE,
        )

    def process(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.popen(*arguments) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def deploy(self, name: str = "web", *more: str, tag: str = "v1.0.0", port: int = 8443) -> None:
        listen = f"127.0.0.1:{port}"
        result = self.call("deploy", name, "--tag", tag, "--listen", listen, *more)
        assert result.exit_code == 0, result.stderr

    def running(self, name: str = "web", *more: str, port: int = 8443) -> None:
        self.deploy(name, *more, port=port)
        self.api.do(lambda engine: engine.finish(name))

    def when(self, ready: Callable[[Any], bool]) -> None:
        """Wait, by the engine's own bell, until it is so."""
        self.api.when(ready)


@pytest.fixture(autouse=True)
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative times of what runs in this process are told from an hour after the fake's start."""
    now = dt.datetime(2026, 1, 1, 1, tzinfo=dt.UTC)
    monkeypatch.setattr("agent.cli.text.now", lambda: now)


@pytest.fixture
def agent(short_dir: Path) -> Iterator[Agent]:
    with ThreadedApi(short_dir / "agent.sock") as api:
        yield Agent(api)
