"""How far along an update is, beside what is usual on this host."""

from __future__ import annotations

import datetime as dt
from typing import Any

import msgspec
import pytest

from agent.cli.client import Client
from agent.cli.expectation import history, pace
from agent.cli.progress import Lines
from agent.wire.views import DeploymentView, EstimateView, UpdateView

NOW = dt.datetime(2026, 1, 1, 0, 1, tzinfo=dt.UTC)
USUAL = EstimateView(p50=2.5, p90=4.0, samples=3)


def ago(seconds: float) -> dt.datetime:
    return NOW - dt.timedelta(seconds=seconds)


@pytest.fixture
def deployment(agent) -> DeploymentView:
    """In the boot of its first update."""
    agent.deploy()
    agent.api.do(lambda engine: (engine.advance("web"), engine.advance("web")))
    return Client(agent.api.path).read("/v1/deployments/web", DeploymentView)


def with_(update: UpdateView | None, step: str, started_s: float = 2.1, **progress: Any) -> Any:
    assert update is not None
    return msgspec.structs.replace(
        update,
        step=step,
        started_at=ago(started_s),
        progress=msgspec.structs.replace(update.progress, **progress),
    )


@pytest.mark.parametrize(
    ("step", "progress", "told"),
    [
        ("boot", {}, ""),
        ("boot", {"boot_estimate_s": USUAL}, "2.1 s of about 2.5 s"),
        (
            "boot",
            {"boot_estimate_s": USUAL, "ready_estimate_at": ago(-5.4)},
            "2.1 s of about 2.5 s, ready in about 5.4 s",
        ),
        ("verify", {"boot_estimate_s": USUAL, "ready_estimate_at": ago(1)}, "later than usual"),
        ("prepare", {"boot_estimate_s": USUAL}, "boot about 2.5 s"),
        ("stop_old", {"downtime_estimate_s": USUAL}, "downtime about 2.5 s"),
        ("switch", {"boot_estimate_s": USUAL, "downtime_estimate_s": USUAL}, ""),
    ],
)
def test_what_has_passed_is_set_beside_what_is_usual(
    deployment, step: str, progress: dict[str, Any], told: str
) -> None:
    assert pace(with_(deployment.update, step, **progress), NOW) == told


def test_a_page_names_what_is_usual(deployment) -> None:
    update = with_(deployment.update, "boot", boot_estimate_s=USUAL, ready_estimate_at=NOW)
    assert history(update) == (
        "boot about 2.5 s, rarely over 4.0 s (3 samples); ready about 2026-01-01 00:01:00Z"
    )


def test_lines_name_step_stages_probes_and_estimate_and_do_not_come_for_time_alone(
    deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = Lines()
    now = dt.datetime.now(dt.UTC)
    estimate = EstimateView(p50=3600.0, p90=7200.0, samples=1)
    update = msgspec.structs.replace(
        with_(deployment.update, "boot", boot_estimate_s=estimate), started_at=now
    )
    lines.show(update, deployment, 2.0)
    lines.show(msgspec.structs.replace(update, started_at=now - dt.timedelta(60)), deployment, 9.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("+   2.0 s  started, boot; 3 of 7 stages, at certificate; 0/2 probes; ")
    assert line.endswith(" s of about 1 h")
