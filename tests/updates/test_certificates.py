"""Boots of guests that ask for a public certificate: counted, told, and not spent in a loop."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

import msgspec
import pytest

from agent.model.reasons import DecidedStrategy, Decision
from agent.model.revision import DeploymentStatus
from agent.updates.admission.certificates import boots_of, told
from agent.updates.planner.alarms import alarms
from agent.updates.planner.certificates import SPENT, boot_sample, certificate_domain, left, recent
from simulator.rows import instant, revision
from simulator.simulated_host import SimulatedHost

NOW = instant()
DOMAIN = "example.org"
PUBLIC = revision(tls_mode="cert-proxy", domain=DOMAIN)


def days_ago(*days: float) -> tuple[float, ...]:
    return tuple((NOW.wall - dt.timedelta(days=one)).timestamp() for one in days)


@pytest.mark.parametrize(
    ("changes", "domain"),
    [
        ({}, DOMAIN),
        ({"tls_mode": "acme"}, DOMAIN),
        ({"tls_mode": "self-signed"}, None),
        ({"domain": None}, None),
        ({"domain": "localhost"}, None),
        ({"domain": "Example.ORG"}, DOMAIN),
        ({"domain": None, "variables": {"DOMAIN": "other.example"}}, "other.example"),
        ({"domain": None, "guest_domain": "web.enclaves.example"}, "web.enclaves.example"),
    ],
)
def test_a_certificate_is_asked_for_by_name(
    changes: dict[str, object], domain: str | None
) -> None:
    changed = msgspec.structs.replace(PUBLIC, **changes)
    assert certificate_domain(changed) == domain
    assert [sample.key for sample in boot_sample(changed, NOW)] == ([domain] if domain else [])


def test_boots_count_for_a_week() -> None:
    assert recent(days_ago(0, 1, 6.9, 7.1, 30), NOW) == 3
    assert left(days_ago(0, 1, 6.9, 7.1), NOW) == 1
    assert left(days_ago(*[1] * 9), NOW) == 0


def test_a_clock_that_was_set_back_forgets_no_boot() -> None:
    assert recent(days_ago(-3, -1, 1), NOW) == 3


@pytest.mark.parametrize(("boots", "remaining", "told_of"), [(0, 4, 0), (2, 2, 0), (3, 1, 1)])
def test_a_plan_says_how_many_are_left_and_warns_from_the_third(
    boots: int, remaining: int, told_of: int
) -> None:
    plain = Decision(strategy=DecidedStrategy.BLUE_GREEN)
    decision = told(plain, DOMAIN, days_ago(*[1] * boots), NOW)
    assert decision.certificate_boots_left == remaining
    assert [str(one.code) for one in decision.reasons] == ["certificate_boots"] * told_of
    assert told(plain, None, days_ago(1, 1, 1), NOW) == plain


@pytest.fixture
def host() -> Iterator[SimulatedHost]:
    host = SimulatedHost(tls_mode="cert-proxy", domain=DOMAIN)
    host.serve("v1")
    yield host
    host.close()


def counted(host: SimulatedHost) -> int:
    return len(host.read(lambda tx: boots_of(tx, DOMAIN)))


def end_and_wait(host: SimulatedHost) -> None:
    (key,) = host.vms
    host.die(key)
    host.settle(seconds=1000)


def test_every_launch_that_comes_up_is_counted_and_outlives_the_agent(host: SimulatedHost) -> None:
    assert counted(host) == 1
    host.crash()
    host.settle(seconds=60)
    assert counted(host) == 1
    end_and_wait(host)
    assert counted(host) == 2
    host.serve("v2")
    assert counted(host) == 3


def test_a_guest_with_its_own_certificate_is_not_counted() -> None:
    host = SimulatedHost(domain=DOMAIN)
    host.serve("v1")
    for _ in range(5):
        end_and_wait(host)
        host.settle(seconds=2000)
    assert counted(host) == 0
    assert host.serving_tag() == "v1"
    host.close()


def test_a_guest_that_ends_by_itself_is_launched_again_until_four_boots_are_counted(
    host: SimulatedHost,
) -> None:
    for boots in (2, 3, 4):
        end_and_wait(host)
        assert (host.serving_tag(), counted(host)) == ("v1", boots)
    end_and_wait(host)
    assert (host.status(), counted(host)) == (DeploymentStatus.FAILED, 4)
    fault = host.deployment().fault
    assert fault is not None
    assert fault.code == SPENT
    assert DOMAIN in fault.detail
    assert not host.vms


def test_from_the_third_boot_on_it_is_a_problem(host: SimulatedHost) -> None:
    end_and_wait(host)
    assert "certificate_boots" not in {one.code for one in alarms(host.situation()).values()}
    end_and_wait(host)
    (problem,) = [o for o in alarms(host.situation()).values() if o.code == "certificate_boots"]
    assert problem.severity == "warning"
    assert DOMAIN in problem.detail


def test_a_week_later_it_is_launched_again(host: SimulatedHost) -> None:
    for _ in range(3):
        end_and_wait(host)
    host.clock.advance(8 * 86400)
    end_and_wait(host)
    assert host.serving_tag() == "v1"


def test_what_a_reboot_of_the_host_took_is_launched_again_all_the_same(
    host: SimulatedHost,
) -> None:
    for _ in range(3):
        end_and_wait(host)
    host.reboot()
    host.settle(seconds=1000)
    assert (host.serving_tag(), counted(host)) == ("v1", 5)


def test_who_asks_for_an_update_gets_it_however_many_there_were(host: SimulatedHost) -> None:
    for _ in range(4):
        end_and_wait(host)
    host.serve("v2")
    assert (host.serving_tag(), counted(host)) == ("v2", 5)
    assert [str(one.code) for one in host.current().reasons] == ["certificate_boots"]
