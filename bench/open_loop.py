"""Runs the open-loop generator of GET requests as a process, and reads what it measured."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from bench.daemon import BenchError
from bench.place import ROOT


async def send_openly(
    port: int,
    path: str,
    *,
    per_s: int,
    seconds: float,
    connections: int,
    tls: tuple[Path, ...] = (),
) -> Any:
    """What `status_load` prints. `tls`: certificate, key and authority to connect with."""
    words = (str(port), path, str(per_s), str(seconds), str(connections), *map(str, tls))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.status_load", *words),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        limit=64 << 20,
        start_new_session=True,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    if process.returncode != 0:
        raise BenchError(f"the generator of {path} requests failed; it says above why")
    answer = json.loads(output)
    if answer["wrong"]:
        raise BenchError(f"{path} did not answer 200 {answer['wrong']} times")
    return answer
