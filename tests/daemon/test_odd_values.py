"""Values that look like something else, through the whole daemon."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.daemon.conftest import running
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import config_of


async def test_odd_values_reach_the_guest_as_they_were_given(tmp_path: Path) -> None:
    """Whatever a value holds, it is a value."""
    values = {
        "A": "two\nlines: {yes}\n",
        "B": "yes",
        "C": "$(id) `id` ${HOME} %s \\n ' \" #",
        "D": "",
        "E": "x" * 65536,
    }
    source = fake_releases(tmp_path, {"v1": config_of(variables=tuple(values))})
    async with running(source, settings=settings(install(tmp_path))) as daemon:
        assert (await daemon.deploy(tag="v1", variables=values)).status == 202
        assert (await daemon.over())["status"] == "completed"
        seen = await daemon.deployment()
        reader, writer = await asyncio.open_connection("127.0.0.1", daemon.plain)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        said = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
        writer.close()
    assert said["env"] == values | {"DOMAIN": "hello.enclaves.example"}
    assert seen is not None
    assert seen["variables"] == values
