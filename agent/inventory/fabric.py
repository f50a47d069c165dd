"""What a GPU's NVLinks and its place in the NVLink fabric tell of its health. Pure.

States and the health mask are those of nvml.h (NVML_GPU_FABRIC_*): two bits a condition, 1 true,
2 false, 0 not supported, and four bits that name a wrong configuration, 1 for none. The status is
of a state that is completed only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agent.inventory.finding import Finding
from agent.model.gpu import HealthAction, Severity

_TRUE = 1
_CONDITIONS = (
    (0, "its bandwidth is degraded"),
    (2, "its routes are being recovered"),
    (4, "its routes are unhealthy"),
    (6, "it recovers from access time-outs"),
)
_CONFIGURATION_SHIFT, _CONFIGURATION_BITS, _CONFIGURED = 8, 0xF, frozenset({0, 1})
_MISCONFIGURED = {
    2: "the system GUID is wrong",
    3: "the chassis serial number is wrong",
    4: "it is in no partition",
    5: "it has too few NVLinks",
    6: "its firmware does not fit the fabric",
    7: "it is in a wrong location",
    8: "its state is invalid",
}
_MANAGER_SHIFT, _DISCONNECTED = 14, 2
_SEE = "see the fabric manager's log and the BMC"


def fabric_findings(
    fabric: dict[str, Any] | None,
    nvlink: dict[str, Any] | None,
    *,
    on_board: bool,
    used: bool,
) -> Iterator[Finding]:
    """`on_board`: it sits on a baseboard. `used`: the host itself drives the switches of that."""
    told = fabric or {}
    joined = told.get("state") == "completed"
    faults = [f"error {told['status']}"] if joined and told.get("status") else []
    faults += _mask_faults(told.get("health_mask"))
    if faults:
        yield Finding(
            "fabric_unhealthy",
            Severity.WARNING,
            HealthAction.WATCH,
            f"its NVLink fabric reports: {', '.join(faults)}; {_SEE}",
            looks=3,
        )
    if told.get("state") in ("not_started", "in_progress"):
        yield Finding(
            "fabric_not_ready",
            Severity.WARNING if used else Severity.INFO,
            HealthAction.WATCH,
            "its NVLink fabric is not ready: start the fabric manager where groups are used",
            looks=3,
        )
    yield from _links_down(nvlink or {}, on_board=on_board, used=on_board and (joined or used))


def _mask_faults(mask: object) -> list[str]:
    if not isinstance(mask, int):
        return []
    found = [text for shift, text in _CONDITIONS if mask >> shift & 3 == _TRUE]
    configuration = mask >> _CONFIGURATION_SHIFT & _CONFIGURATION_BITS
    if configuration not in _CONFIGURED:
        unknown = f"configuration fault {configuration}, not known here"
        found.append(_MISCONFIGURED.get(configuration, unknown))
    if mask >> _MANAGER_SHIFT & 3 == _DISCONNECTED:
        found.append("the global fabric manager is not connected")
    return found


def _links_down(nvlink: dict[str, Any], *, on_board: bool, used: bool) -> Iterator[Finding]:
    """A GPU on a board has all its links up; a card has some by a bridge, and may have none."""
    links, active = nvlink.get("links"), nvlink.get("active")
    if not isinstance(links, int) or not isinstance(active, int) or active >= links:
        return
    if not (on_board or active):
        return
    yield Finding(
        "nvlinks_down",
        Severity.WARNING if used else Severity.INFO,
        HealthAction.WATCH,
        f"{links - active} of its {links} NVLinks are down: groups of GPUs would be slow or "
        f"fail; {_SEE}, then reset all GPUs and switches of the board",
        looks=3,
    )
