"""How a host comes into the fleet and stays in it; and who is not taken for the coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from agent.pki.inspection import certificate_uri
from agent.pki.names import coordinator_uri, host_uri, observer_uri
from tests.coordinator.world import Coordinator, join, world
from tests.fakes.daemon_process import Daemon, place
from tests.fakes.fake_vms import settings
from tests.fakes.fleet import DOMAIN, HOST
from tests.fakes.warm_start import WARM

pytestmark = pytest.mark.slow

LONG_S = 3600.0  # a token that is good for longer than any daemon takes to start


@contextlib.asynccontextmanager
async def newcomer(parts: tuple[Path, Path]) -> AsyncIterator[tuple[Daemon, Coordinator]]:
    """A daemon with nothing but the authority's certificate and a token, not started yet."""
    program, source = parts
    coordinator = Coordinator(place("eac-"))
    daemon = Daemon(place(), source, settings=settings(program), **WARM)
    join(daemon, coordinator)
    for name in ("host.pem", "host.key"):
        (daemon.home / name).unlink()
    daemon.configure(coordinator={"enrol_token_file": str(daemon.home / "token")})
    try:
        yield daemon, coordinator
    finally:
        await daemon.leave()
        coordinator.leave()


async def problems_of(daemon: Daemon) -> dict[str, str]:
    problems = (await daemon.get("/status")).body["problems"]
    return {problem["code"]: problem["detail"] for problem in problems}


def own_certificate(daemon: Daemon) -> x509.Certificate:
    return x509.load_pem_x509_certificate((daemon.home / "host.pem").read_bytes())


async def test_a_token_makes_a_host_a_member_and_is_spent(parts: tuple[Path, Path]) -> None:
    async with newcomer(parts) as (daemon, coordinator):
        token = daemon.home / "token"
        token.write_text("once\n")
        coordinator.ledger.add_token("once", HOST, time.time() + LONG_S)
        await daemon.up()  # nothing waits for the coordinator, which is not there yet
        coordinator.start()
        await coordinator.until(lambda: coordinator.ledger.report(HOST))
        assert not token.exists()
        assert certificate_uri(own_certificate(daemon)) == host_uri(DOMAIN, HOST)
        assert stat.S_IMODE((daemon.home / "host.key").stat().st_mode) == 0o600
        answer = await coordinator.insist(HOST, "POST", "/v1/host/drain", key="k")
        assert answer.status == 200
        assert await problems_of(daemon) == {}
        assert "once" not in daemon.log.read_text().split()


async def test_a_token_that_is_not_good_is_told_and_a_good_one_mends_it(
    parts: tuple[Path, Path],
) -> None:
    async with newcomer(parts) as (daemon, coordinator):
        coordinator.start()
        coordinator.ledger.add_token("late", HOST, time.time() - 1)
        coordinator.ledger.add_token("another", "other-host", time.time() + LONG_S)
        coordinator.ledger.add_token("good", HOST, time.time() + LONG_S)
        (daemon.home / "token").write_text("late")
        await daemon.up()
        for token in ("late", "another", "unknown"):
            (daemon.home / "token").write_text(token)
            while "enrolment_failed" not in (problems := await problems_of(daemon)):
                await asyncio.sleep(0.05)
            assert "403" in problems["enrolment_failed"]
            assert token not in problems["enrolment_failed"]
        (daemon.home / "token").write_text("good")
        await coordinator.until(lambda: coordinator.ledger.report(HOST))
        while await problems_of(daemon):
            await asyncio.sleep(0.05)


async def test_an_answer_that_was_lost_costs_no_second_token(parts: tuple[Path, Path]) -> None:
    """The agent is killed when its token is spent and its certificate not yet here."""
    async with newcomer(parts) as (daemon, coordinator):
        (daemon.home / "token").write_text("once")
        coordinator.ledger.add_token("once", HOST, time.time() + LONG_S)
        await daemon.up()
        await coordinator.until((daemon.home / "host.key").exists)
        daemon.kill()
        key = (daemon.home / "host.key").read_bytes()
        coordinator.start()
        await daemon.up()
        await coordinator.until((daemon.home / "host.pem").exists)
        daemon.kill()
        (daemon.home / "host.pem").unlink()
        (daemon.home / "token").write_text("once")
        await daemon.up()
        await coordinator.until(lambda: coordinator.ledger.report(HOST))
        assert (daemon.home / "host.key").read_bytes() == key


async def test_a_certificate_is_renewed_before_its_end(parts: tuple[Path, Path]) -> None:
    async with newcomer(parts) as (daemon, coordinator):
        coordinator.ledger.set("certificate_days", 20 / 86400)
        (daemon.home / "token").write_text("once")
        coordinator.ledger.add_token("once", HOST, time.time() + LONG_S)
        coordinator.start()
        await daemon.up()
        await coordinator.until((daemon.home / "host.pem").exists)
        first, key = own_certificate(daemon), (daemon.home / "host.key").read_bytes()
        coordinator.ledger.set("certificate_days", 90)
        await coordinator.until(
            lambda: (
                own_certificate(daemon).not_valid_after_utc > first.not_valid_after_utc
                and (own_certificate(daemon).not_valid_after_utc - first.not_valid_after_utc).days
                > 80
            )
        )
        serial = own_certificate(daemon).serial_number
        await asyncio.sleep(1.5)
        assert own_certificate(daemon).serial_number == serial
        assert (daemon.home / "host.key").read_bytes() == key
        sent = coordinator.ledger.reports(HOST)
        await coordinator.until(lambda: coordinator.ledger.reports(HOST) > sent + 1)
        assert await problems_of(daemon) == {}


async def test_a_host_whose_certificate_ended_comes_back_with_a_new_token(
    parts: tuple[Path, Path],
) -> None:
    async with newcomer(parts) as (daemon, coordinator):
        coordinator.ledger.set("certificate_days", 2 / 86400)
        for token in ("once", "again"):
            coordinator.ledger.add_token(token, HOST, time.time() + LONG_S)
        token = daemon.home / "token"
        token.write_text("once")
        coordinator.start()
        await daemon.up()
        await coordinator.until(lambda: not token.exists())
        daemon.kill()
        ends = own_certificate(daemon).not_valid_after_utc.timestamp()
        await asyncio.sleep(max(0.0, ends - time.time()))
        coordinator.ledger.set("certificate_days", 90)
        await daemon.up()
        while "enrolment_failed" not in await problems_of(daemon):
            await asyncio.sleep(0.05)
        token.write_text("again")
        sent = coordinator.ledger.reports(HOST)
        await coordinator.until(lambda: coordinator.ledger.reports(HOST) > sent)
        while await problems_of(daemon):
            await asyncio.sleep(0.05)


async def test_nothing_is_told_to_a_member_that_only_listens_there(
    parts: tuple[Path, Path],
) -> None:
    program, source = parts
    async with world(source, **settings(program)) as (daemon, coordinator):
        coordinator.kill()
        sent = coordinator.ledger.reports(HOST)
        for uri in (host_uri(DOMAIN, "other"), observer_uri(DOMAIN)):
            coordinator.become(uri)
            coordinator.start()
            while f"says {uri}" not in (await problems_of(daemon)).get(
                "coordinator_untrusted", ""
            ):
                await asyncio.sleep(0.05)
            coordinator.kill()
        assert coordinator.ledger.reports(HOST) == sent
        coordinator.become(coordinator_uri(DOMAIN))
        coordinator.start()
        await coordinator.until(lambda: coordinator.ledger.reports(HOST) > sent)
