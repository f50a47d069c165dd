"""Where evidence is not good enough the new version fails and the old one serves on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agent.releases.build import build_release, read_image
from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon
from tests.fakes.guest_releases import REPO, config_of, guest_firmware, guest_image

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

# What a guest does wrong, and the check that must say so.
TRICKS = {
    "other-key": "tls_key",
    "old-nonce": "nonce_mismatch",
    "v2-only": "evidence_not_fresh",
    "dummy": "document_dummy",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image, firmware = read_image(guest_image()), guest_firmware()
    out = tmp_path_factory.mktemp("source")
    configs = {"v1": config_of(), "v2": config_of()}
    configs["rekeyed"] = config_of({"GUEST_NEW_KEY_AFTER_S": "15"})
    configs |= {trick: config_of({"GUEST_EVIDENCE": trick}) for trick in TRICKS}
    for tag, config in configs.items():
        build_release(config=config, image=image, repo=REPO, tag=tag, out=out, firmware=firmware)
    return out


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def daemon(source: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Daemon]:
    """With `hello` v1 deployed and attested. While `swap` exists QEMU is given that initrd."""
    place = tmp_path_factory.mktemp("qemu")
    wrapper = place / "qemu"
    wrapper.write_text(
        "#!/bin/sh\n"
        f'[ ! -e {place}/swap ] || set -- "$@" -initrd {place}/swap\n'
        'exec qemu-system-x86_64 "$@"\n'
    )
    wrapper.chmod(0o755)
    settings = {
        "tee": "simulated",
        "allow_unattested": False,
        "qemu": {"firmware_dir": str(guest_firmware().parent), "binary": str(wrapper)},
    }
    async with running(source, settings=settings) as daemon:
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        yield daemon


async def serving(daemon: Daemon) -> tuple[str, bool | None]:
    found = await daemon.deployment()
    assert found is not None
    (one,) = found["enclaves"]
    return found["tag"], one["attested"]


@pytest.mark.parametrize("trick", TRICKS)
async def test_a_guest_with_wrong_evidence_fails_for_that_reason(
    trick: str, daemon: Daemon
) -> None:
    assert (await daemon.update(tag=trick)).status == 202
    update = await daemon.over()
    assert update["status"] == "failed"
    assert TRICKS[trick] in str(update["error"]), update["error"]
    assert await serving(daemon) == ("v1", True)


async def test_an_initrd_exchanged_behind_the_check_fails_by_its_measurement(
    daemon: Daemon,
) -> None:
    wrapper = Path(daemon.config["qemu"]["binary"])
    image = read_image(guest_image())
    initrd = next(path for kind, path in image.files.items() if kind == "initrd")
    swap = wrapper.with_name("swap")
    swap.write_bytes(initrd.read_bytes() + bytes(512))
    try:
        assert (await daemon.update(tag="v2")).status == 202
        update = await daemon.over()
    finally:
        swap.unlink()
    assert update["status"] == "failed"
    assert "snp_measurement" in str(update["error"]), update["error"]
    assert await serving(daemon) == ("v1", True)
    assert (await daemon.update(tag="v2")).status == 202
    assert (await daemon.over())["status"] == "completed"
    assert await serving(daemon) == ("v2", True)


async def test_a_guest_that_changes_its_key_is_judged_anew_and_serves_on(daemon: Daemon) -> None:
    assert (await daemon.update(tag="rekeyed")).status == 202
    assert (await daemon.over())["status"] == "completed"
    assert await serving(daemon) == ("rekeyed", True)

    async def rebound() -> bool:
        events = (await daemon.get("/v1/events")).body["events"]
        return any(event["kind"] == "key" for event in events)

    async with asyncio.timeout(90):
        while not await rebound():
            await asyncio.sleep(0.5)
    found = await daemon.until(lambda d: d is not None and d["enclaves"][0]["healthy"])
    assert found is not None
    assert (found["status"], await serving(daemon)) == ("running", ("rekeyed", True))
    events = (await daemon.get("/v1/events")).body["events"]
    assert not [event for event in events if event.get("reason") == "key_changed"]
