"""docs/deploy-your-app.md, block by block: what it says is typed, and prints what it says."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.config_file import load_config
from agent.daemon.parts import restore_host, secrets_dir
from tests.fakes.daemon_process import CHECKOUT, kill_all, place, processes_in
from tests.fakes.guest_releases import guest_image
from tests.fakes.transcript import Shell, agrees, steps_of

DOCUMENT = CHECKOUT / "docs" / "deploy-your-app.md"

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.root]


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    """In an empty directory, with this checkout's agent; nothing of it is left at the end."""
    home = place("eadoc-")
    storage = home / "storage.conf"
    storage.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{home}/images-of"\nrunroot = "{home}/run-of"\n'
    )
    kept = {n: v for n, v in os.environ.items() if not n.startswith("ENCLAVE_AGENT_")}
    opened = Shell(
        home,
        kept
        | {
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}:/usr/sbin:/sbin",
            "HOME": str(home),
            "CONTAINERS_STORAGE_CONF": str(storage),
            "ENCLAVE_AGENT_GUEST_IMAGE": str(guest_image().parent),
            "PYTHONPATH": str(CHECKOUT),
        },
    )
    try:
        yield opened
    finally:
        await opened.close()
        kill_all(processes_in(home))
        if (home / "agent.yaml").exists():
            config = load_config(home / "agent.yaml", {})
            await restore_host(config)
            shutil.rmtree(secrets_dir(config), ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.timeout(300)  # two guests boot one after the other, in emulation
async def test_the_document_is_true(shell: Shell) -> None:
    steps = steps_of(DOCUMENT)
    assert len(steps) > 8
    async with asyncio.timeout(280):
        for step in steps:
            lines = await shell.run(step.commands)
            assert agrees(step.printed, lines), f"{step.commands}printed\n" + "\n".join(lines)
