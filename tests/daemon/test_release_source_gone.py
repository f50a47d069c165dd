"""An https server of releases dies in the middle of an artifact, and comes back."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from scripts.story.load import Load
from tests.daemon.conftest import running
from tests.fakes.daemon_process import free_ports
from tests.fakes.fake_vms import install, releases_of_own_images, settings
from tests.fakes.host_truth import discrepancies
from tests.fakes.https_files import make_certificate, serve_https
from tests.fakes.release_parts import MIB

pytestmark = [pytest.mark.slow]


async def test_the_update_fails_naming_it_the_old_serves_on_and_a_retry_goes_on_where_it_was(
    tmp_path: Path,
) -> None:
    source, program = releases_of_own_images(tmp_path, ("v1", "v2")), install(tmp_path)
    certificate = make_certificate(tmp_path)
    (port,) = free_ports(1)
    async with AsyncExitStack() as server:
        files = await server.enter_async_context(serve_https(source, tmp_path, port, certificate))
        environment = {"SSL_CERT_FILE": str(certificate)}
        url = Path(files.url)
        conf = settings(program, releases={"source": files.url})
        async with running(url, settings=conf, environment=environment) as daemon:
            assert (await daemon.deploy(tag="v1")).status == 202
            update = await daemon.over()
            assert update["status"] == "completed", update["error"]
            load = Load(daemon.https, daemon.plain, per_second=15)
            load.start()
            files.held.clear()
            names = [path.name for path in source.rglob("*") if path.stat().st_size >= 3 * MIB]
            files.holds.update({name: MIB for name in names})
            assert (await daemon.update(tag="v2")).status == 202
            await files.held.wait()
            files.dead = True
            await server.aclose()  # every connection breaks, and nobody listens any more
            update = await daemon.over()
            assert (update["status"], update["step"]) == ("failed", "prepare")
            assert update["error"]["code"] == "release_source_unavailable"
            assert files.url in update["error"]["detail"], update["error"]
            answer = await daemon.update(tag="v2")
            assert (answer.status, answer.code) == (503, "release_source_unavailable")
            await asyncio.sleep(0.3)
            tally = await load.step()
            assert set(tally.versions) == {"v1"}

            async with serve_https(source, tmp_path, port, certificate) as again:
                answer = await daemon.send("POST", "/v1/deployments/hello/updates/current/retry")
                assert answer.status == 202, answer
                update = await daemon.over()
                assert update["status"] == "completed", update["error"]
                resumed = [one.range for one in again.seen if one.range]
            last = await load.stop()
            print(
                f"{tally.sent + last.sent} requests, {tally.lost + last.lost} lost, "
                f"the retry went on at {resumed}"
            )
            assert tally.lost + last.lost == 0, (tally.failures, last.failures)
            assert resumed
            assert await discrepancies(daemon) == []
