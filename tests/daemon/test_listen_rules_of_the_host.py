"""What the configuration and the host together say of where deployments may listen."""

from __future__ import annotations

import asyncio

import pytest

from agent.config import (
    AttestationConfig,
    CollateralConfig,
    Config,
    CoordinatorConfig,
    ListenConfig,
)
from agent.daemon import listen_rules
from agent.daemon.listen_rules import ListenRulesReader
from agent.model.addresses import HostAddresses
from agent.model.resources import Listen

HERE = HostAddresses(local=("127.0.0.0/8", "192.0.2.1/32"))


@pytest.fixture(autouse=True)
def _ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        listen_rules, "read_ssh_listeners", lambda: (Listen.parse("192.0.2.1:2022"),)
    )


async def refused(config: Config, network: str = "tap") -> dict[str, str]:
    """The refusals of some listeners, by what they would take."""
    rules = await ListenRulesReader(config, network)(HERE)
    asked = ("127.0.0.1:8470", "192.0.2.1:8471", "192.0.2.1:9000", "192.0.2.1:2022")
    guests = ("10.215.0.2:443", "127.215.0.2:443", "192.0.2.1:8472")
    found = {text: rules.fault(Listen.parse(text)) for text in (*asked, *guests)}
    return {text: fault for text, fault in found.items() if fault}


async def test_the_agents_own_ports_and_ssh_are_not_for_deployments() -> None:
    collateral = AttestationConfig(collateral=CollateralConfig(listen="0.0.0.0:9000"))
    found = await refused(Config(attestation=collateral))
    assert "listen.status" in found["127.0.0.1:8470"]
    assert "listen.rpc" in found["192.0.2.1:8471"]
    assert "attestation.collateral.listen" in found["192.0.2.1:9000"]
    assert "SSH" in found["192.0.2.1:2022"]
    assert "network.subnet" in found["10.215.0.2:443"]
    closed = Config(listen=ListenConfig(status=None, rpc=None))
    assert set(await refused(closed)) == {"192.0.2.1:2022", "10.215.0.2:443"}


async def test_in_user_mode_the_guests_are_on_the_loopback() -> None:
    found = await refused(Config(), "user")
    assert "network.loopback_subnet" in found["127.215.0.2:443"]
    assert "no address of this host" in found["10.215.0.2:443"]


@pytest.mark.parametrize("host", ["192.0.2.1", "coordinator.example"])
async def test_a_coordinator_on_this_host_keeps_its_port(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    asked: list[str] = []

    async def resolve(name: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(name)
        return [(2, 1, 6, "", ("192.0.2.1", port)), (2, 1, 6, "", ("198.51.100.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    config = Config(coordinator=CoordinatorConfig(url=f"https://{host}:8472"))
    reader = ListenRulesReader(config, "tap")
    for _ in range(3):
        rules = await reader(HERE)
        assert "coordinator.url" in (rules.fault(Listen.parse("192.0.2.1:8472")) or "")
        assert rules.fault(Listen.parse("127.0.0.1:8472")) is None
    assert asked == [host]


async def test_a_resolver_that_is_silent_delays_nothing_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        await asyncio.sleep(60)
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    monkeypatch.setattr(listen_rules, "_RESOLVE_S", 0.05)
    config = Config(coordinator=CoordinatorConfig(url="https://coordinator.example:8472"))
    async with asyncio.timeout(2):
        rules = await ListenRulesReader(config, "tap")(HERE)
    assert rules.fault(Listen.parse("192.0.2.1:8472")) is None
