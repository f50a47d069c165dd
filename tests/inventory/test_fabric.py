"""What the NVLinks of a GPU and its fabric tell of it.

Masks are made of the fields of nvml.h: bandwidth, recovery, routes, time-outs (two bits each, 1
true, 2 false), configuration (four bits, 1 none), partition and manager (two bits).
"""

from __future__ import annotations

from typing import Any

import pytest

from agent.inventory.fabric import fabric_findings
from agent.inventory.finding import Finding
from agent.model.gpu import Severity

S = Severity
BOARD, CARD = True, False


def mask(*true: int, configuration: int = 1, partition: int = 0, manager: int = 0) -> int:
    conditions = sum((1 if shift in true else 2) << shift for shift in (0, 2, 4, 6))
    return conditions | configuration << 8 | partition << 12 | manager << 14


def found(
    on_board: bool = BOARD, *, used: bool = False, nvlink: Any = None, **fabric: Any
) -> list[Finding]:
    told = {"state": "completed", "status": 0, "clique_id": 0, "health_mask": 0} | fabric
    return list(fabric_findings(told, nvlink, on_board=on_board, used=used))


@pytest.mark.parametrize(
    "told",
    [
        {"health_mask": 0},  # nothing of it is supported
        {"health_mask": mask()},
        {"health_mask": mask(configuration=0)},
        {"health_mask": mask(partition=1, manager=1)},
        {"health_mask": None},
        {"state": "not_supported", "status": 3},
        {"state": None},
    ],
)
def test_a_fabric_that_is_well_or_tells_nothing_is_nothing(told: dict[str, Any]) -> None:
    assert found(**told) == []


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"status": 58}, "error 58"),
        ({"health_mask": mask(0)}, "bandwidth is degraded"),
        ({"health_mask": mask(2)}, "routes are being recovered"),
        ({"health_mask": mask(4)}, "routes are unhealthy"),
        ({"health_mask": mask(6)}, "access time-outs"),
        ({"health_mask": mask(configuration=5)}, "too few NVLinks"),
        ({"health_mask": mask(configuration=8)}, "state is invalid"),
        ({"health_mask": mask(configuration=13)}, "fault 13, not known here"),
        ({"health_mask": mask(manager=2)}, "manager is not connected"),
        ({"health_mask": 0x5555}, "routes are unhealthy"),  # all of it at once
    ],
)
@pytest.mark.parametrize("on_board", [BOARD, CARD])
def test_each_fault_of_a_fabric_is_a_warning_with_its_name(
    on_board: bool, told: dict[str, Any], words: str
) -> None:
    (one,) = found(on_board, **told)
    assert (one.code, one.severity) == ("fabric_unhealthy", S.WARNING)
    assert words in one.detail
    assert "fabric manager" in one.detail


@pytest.mark.parametrize(("used", "severity"), [(True, S.WARNING), (False, S.INFO)])
@pytest.mark.parametrize("state", ["not_started", "in_progress"])
def test_a_fabric_that_does_not_come_up_matters_where_the_host_drives_it(
    state: str, used: bool, severity: Severity
) -> None:
    (one,) = found(used=used, state=state, status=3)  # which means nothing before the end
    assert (one.code, one.severity) == ("fabric_not_ready", severity)
    assert "start the fabric manager" in one.detail


@pytest.mark.parametrize("active", [0, 17])
def test_a_gpu_of_a_board_has_all_its_links_up(active: int) -> None:
    links = {"links": 18, "active": active}
    (told,) = found(nvlink=links)
    assert (told.code, told.severity) == ("nvlinks_down", S.WARNING)
    assert f"{18 - active} of its 18 NVLinks" in told.detail
    (unused,) = found(nvlink=links, state="not_supported")
    assert unused.severity is S.INFO
    (driven,) = found(nvlink=links, state="not_supported", used=True)
    assert driven.severity is S.WARNING


def test_a_card_without_a_bridge_has_none_up_and_is_well() -> None:
    down = {"links": 12, "active": 0}
    assert found(CARD, nvlink=down, state="not_supported") == []
    assert found(CARD, nvlink=down) == []
    (half,) = found(CARD, nvlink={"links": 12, "active": 8}, state="not_supported")
    assert half.severity is S.INFO


@pytest.mark.parametrize(
    "nvlink", [None, {}, {"links": 18, "active": 18}, {"links": None, "active": None}]
)
def test_links_that_are_all_up_or_not_known_are_nothing(nvlink: Any) -> None:
    assert found(nvlink=nvlink) == []
