"""The agent's command line, as an operator types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_TIMEOUT_S = 3 * 3600  # eight GPUs and 800 GiB take half an hour to Ready, an update twice that


class Command:
    """`enclave-agent --config FILE …`"""

    def __init__(self, config: Path, socket: Path | None = None) -> None:
        self._prefix = [sys.executable, "-m", "agent", "--config", str(config)]
        if socket is not None:
            self._prefix += ["--socket", str(socket)]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._prefix, *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )

    @staticmethod
    def shown(words: tuple[str, ...]) -> str:
        return " ".join(("enclave-agent", *words))
