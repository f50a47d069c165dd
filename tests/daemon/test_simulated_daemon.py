"""The whole daemon with `tee: simulated`: what it refuses to boot, and what everything says."""

from __future__ import annotations

import json
import ssl
from asyncio import open_connection
from pathlib import Path

import pytest

from agent.releases.build import build_release, read_image
from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon
from tests.fakes.guest_releases import REPO, config_of, guest_firmware, guest_image
from tests.fakes.snp_documents import read_v3

pytestmark = [pytest.mark.qemu, pytest.mark.slow]

SIMULATED = "SIMULATED — NOT CONFIDENTIAL"
OTHER = "ab" * 48


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """v1; `altered`, whose image is not the one that was measured; `plain`, not measured."""
    image, firmware, out = read_image(guest_image()), guest_firmware(), tmp_path / "source"
    config = config_of()
    for tag, promised, named in (
        ("v1", None, firmware),
        ("altered", OTHER, firmware),
        ("plain", None, None),
    ):
        build_release(
            config=config,
            image=image,
            repo=REPO,
            tag=tag,
            out=out,
            snp_measurement=promised,
            firmware=named,
        )
    return out


def settings() -> dict[str, object]:
    return {
        "tee": "simulated",
        "allow_unattested": False,
        "qemu": {"firmware_dir": str(guest_firmware().parent)},
    }


async def document(daemon: Daemon, nonce: str) -> dict[str, object]:
    """The evidence, through the data plane."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    reader, writer = await open_connection("127.0.0.1", daemon.https, ssl=tls)
    path = f"/.well-known/tinfoil-attestation?nonce={nonce}"
    writer.write(f"GET {path} HTTP/1.0\r\nHost: hello\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    found: dict[str, object] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


async def test_a_simulated_host_says_so_everywhere_and_boots_only_what_measures_as_promised(
    measured: Path,
) -> None:
    async with running(measured, settings=settings()) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        found = await daemon.deployment()
        assert found is not None
        assert found["simulated"] is True
        (serving,) = found["enclaves"]
        assert serving["simulated"] is True
        host = (await daemon.get("/status")).body["host"]
        assert (host["tee"], host["simulated"]) == ("simulated", True)
        assert SIMULATED in host["why"]["tee"]
        for words in (("status",), ("status", "hello")):
            code, shown, _ = await daemon.cli(*words)
            assert (code, SIMULATED in shown) == (0, True), shown
        assert SIMULATED in daemon.log.read_text()

        first = read_v3(await document(daemon, "01" * 32))
        for tag, code, said in (
            ("altered", "measurement_mismatch", (OTHER, first.measurement)),
            ("plain", "release_invalid", ("no snp_measurement",)),
        ):
            assert (await daemon.update(tag=tag)).status == 202
            update = await daemon.over()
            assert (update["status"], update["step"]) == ("failed", "prepare")
            assert update["error"]["code"] == code
            assert all(word in update["error"]["detail"] for word in said)
        still = await daemon.deployment()
        assert still is not None
        assert [one["id"] for one in still["enclaves"]] == [serving["id"]]

        # The agent is killed; another one plays on, with the same chain.
        daemon.kill()
        await daemon.up()
        second = read_v3(await document(daemon, "02" * 32))
        assert (second.nonce, second.measurement) == ("02" * 32, first.measurement)
        assert second.root_pem == first.root_pem
