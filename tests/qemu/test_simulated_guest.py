"""The reference guest on a simulated secure processor: real boots, firmware and evidence."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from agent.attestation.simulated_chain import SimulatedChain, open_chain
from agent.attestation.simulated_processor import SimulatedProcessor
from agent.config import Tee
from agent.enclaves.fleet import Fleet
from agent.model.enclave import Enclave
from agent.releases.launch_digest import snp_launch_digest
from agent.releases.measurement import SnpMeasurements
from tests.fakes.snp_documents import check_report, read_v3
from tests.fakes.vms import (
    QEMU,
    get,
    get_json,
    lone_fleet,
    measured_image,
    order,
    row,
    running_fleet,
    until_printed,
)

pytestmark = [pytest.mark.qemu, pytest.mark.slow]
PATH = "/.well-known/tinfoil-attestation"
NONCE = "5a" * 31 + "01"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> SimulatedChain:
    return open_chain(tmp_path_factory.mktemp("state") / "p.pem", dt.datetime.now(dt.UTC))


def parts(chain: SimulatedChain) -> dict[str, Any]:
    return {
        "tee": Tee.SIMULATED,
        "check_launch": SnpMeasurements().check_launch,
        "processor": SimulatedProcessor(chain, snp_launch_digest),
    }


async def read(fleet: Fleet, vm: Enclave, path: str) -> tuple[int, Any, str]:
    """Status, JSON and the SHA-256 of the key of the connection."""
    status, body, key = await get(fleet, vm, path)
    return status, json.loads(body), key


async def evidence(fleet: Fleet, vm: Enclave, nonce: str | None = NONCE) -> tuple[Any, str]:
    """The document, over a nonce, once there is one; the test's own timeout ends the waiting.

    The guest waits three seconds for its processor, which a busy host may take, and says so then.
    """
    path = PATH if nonce is None else f"{PATH}?nonce={nonce}"
    while True:
        with contextlib.suppress(OSError, TimeoutError, IndexError, ValueError):
            async with asyncio.timeout(8):
                status, document, key = await read(fleet, vm, path)
                if status == 200:
                    return document, key
        await asyncio.sleep(0.05)


async def test_its_evidence_binds_nonce_key_and_launch_and_outlives_the_agent(
    short_dir: Path, chain: SimulatedChain
) -> None:
    vm, image = row("guestaa2", memory_mib=256), measured_image()
    async with running_fleet(short_dir, **parts(chain)) as fleet:
        await fleet.launch(vm, order(image))
        document, key = await evidence(fleet, vm)
        bound = read_v3(document)
        assert bound.nonce == NONCE
        assert bound.measurement == image.release.snp_measurement
        assert bound.tls_spki_sha256 == key
        assert bound.root_pem == chain.root_pem

        old, key = await evidence(fleet, vm, None)
        assert old["format"] == "https://tinfoil.sh/predicate/sev-snp-guest/v2"
        report = gzip.decompress(base64.b64decode(old["body"], validate=True))
        check_report(report, chain.vcek)
        assert report[0x50:0x70].hex() == key
        for nonce in ("", "5A" * 32, "5a" * 31):
            assert (await read(fleet, vm, f"{PATH}?nonce={nonce}"))[0] == 400
        boot = await get_json(fleet, vm, "/.well-known/tinfoil-boot-stages")
        (stage,) = [one for one in boot["stages"] if one["name"] == "cpu-attestation"]
        assert stage["status"] == "ok"
        assert stage["detail"].startswith("SIMULATED — NOT CONFIDENTIAL: ")
        assert image.release.snp_measurement in stage["detail"]

    # Nobody plays the processor any more, then another agent does.
    status, said, _ = await read(fleet, vm, f"{PATH}?nonce={NONCE}")
    assert (status, said["error"]["status"]) == (503, "pending")
    async with lone_fleet(short_dir, rows=(vm,), **parts(chain)) as fleet:
        document, _ = await evidence(fleet, vm, "02" * 32)
        again = read_v3(document)
        assert again.nonce == "02" * 32
        assert again.measurement == bound.measurement


async def test_an_initrd_that_is_exchanged_behind_the_check_is_seen_in_the_measurement(
    short_dir: Path, chain: SimulatedChain
) -> None:
    vm, image = row("guestaa2", memory_mib=256), measured_image()
    other = short_dir / "other.initrd"
    other.write_bytes(image.files.initrd.read_bytes() + bytes(512))
    wrapper = short_dir / "qemu"
    wrapper.write_text(f'#!/bin/sh\nexec {QEMU} "$@" -initrd {other}\n')
    wrapper.chmod(0o755)
    tricked = order(image, variables={"GUEST_EVIDENCE": "other-key"})
    async with lone_fleet(short_dir, binary=str(wrapper), **parts(chain)) as fleet:
        await fleet.launch(vm, tricked)
        document, key = await evidence(fleet, vm)
        bound = read_v3(document)
        assert bound.measurement != image.release.snp_measurement
        assert bound.tls_spki_sha256 != key  # as the guest was told to cheat
        console = await until_printed(fleet, vm.id, b"boot complete")
        assert b"SIMULATED" in console
