"""The cache alive beside the daemon: prefetched for this host, renewed, served, and ended."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.attestation.collateral_cache.endpoint import PATH, EndpointError
from agent.attestation.collateral_cache.service import CollateralService, open_collateral
from agent.attestation.document import CpuKind
from agent.config import AttestationConfig, CollateralConfig, Config, Tee
from agent.daemon.parts import collateral_of
from agent.host.clock import RealClock
from tests.attestation.test_collateral_cache import (  # noqa: F401 - fixtures
    CHIP_PATH,
    REPORT,
    Agent,
    begin,
    vendors,
)
from tests.attestation.test_collateral_endpoint import ask, question
from tests.fakes.vendors import FakeVendors

Begin = Callable[..., Agent]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_it_prefetches_answers_guests_and_ends(
    begin: Begin,  # noqa: F811 - the fixture
    vendors: FakeVendors,  # noqa: F811 - the fixture
) -> None:
    agent, port = begin(), free_port()
    service = CollateralService(agent.cache, agent.endorser, f"127.0.0.1:{port}", agent.clock)
    await service.start()
    try:
        await agent.endorser.seen(CpuKind.SNP, REPORT)
        async with asyncio.timeout(10):
            while not vendors.asked()["/vcek/v1/Milan/crl"]:
                await asyncio.sleep(0.01)
        assert vendors.asked()[CHIP_PATH] == 1
        status, _, _ = await ask(f"http://127.0.0.1:{port}{PATH}", question())
        assert (status, vendors.asked()[CHIP_PATH]) == (200, 1)
    finally:
        await service.close()
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0


async def test_a_listener_that_is_taken_ends_the_start_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config = AttestationConfig(collateral=CollateralConfig(offline=True, listen=listen))
        service = open_collateral(config, state_dir=tmp_path, clock=RealClock())
        with pytest.raises(EndpointError, match="listen"):
            await service.start()
        await service.close()
    assert list(tmp_path.iterdir()) == []


async def test_closing_does_not_wait_for_a_vendor(
    begin: Begin,  # noqa: F811 - the fixture
    vendors: FakeVendors,  # noqa: F811 - the fixture
) -> None:
    agent = begin()
    vendors.free.clear()
    service = CollateralService(agent.cache, agent.endorser, None, agent.clock)
    await agent.endorser.seen(CpuKind.SNP, REPORT)
    await service.start()
    while not vendors.seen:
        await asyncio.sleep(0.005)
    async with asyncio.timeout(2):
        await service.close()


def test_only_a_host_with_a_vendor_s_tee_has_it(tmp_path: Path) -> None:
    config = Config(state_dir=tmp_path)
    for tee in (Tee.SIMULATED, Tee.NONE):
        assert collateral_of(config, tee, RealClock()) is None
    for tee in (Tee.SEV_SNP, Tee.TDX):
        assert collateral_of(config, tee, RealClock()) is not None


def test_no_library_that_verifies_comes_with_it() -> None:
    program = (
        "import sys, agent.attestation.collateral_cache.service;"
        "import agent.attestation.collateral_cache.endpoint;"
        "print([n for n in sys.modules if n.startswith(('cryptography', 'dcap_qvl'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
