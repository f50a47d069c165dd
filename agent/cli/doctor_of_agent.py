"""What the agent that runs says of its host, and of the launches of what it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line
from agent.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from agent.cli.client import Client

# Of a plan: what a launch would fail for; the rest says how much is free now.
_LAUNCH = frozenset(
    {
        "launch_impossible",
        "launch_format_unsupported",
        "measurement_mismatch",
        "tee_unavailable",
        "release_invalid",
        "signature_required",
        "debug_unattested",
        "domain_missing",
    }
)


def lines_of_agent(client: Client) -> list[Line] | str:
    """Its own look with its own rights; or why there is none: nobody answers, or an older one.

    Raises Failure for an agent that answers with an error.
    """
    from agent.wire.answers import Checkup

    try:
        checkup = client.read("/v1/doctor", Checkup)
    except Failure as failure:
        older = failure.problem is not None and failure.problem.code == "unknown_path"
        if failure.exit_code != Exit.UNREACHABLE and not older:
            raise
        return "the agent that runs is older" if older else failure.message
    lines = [Line(one.what, one.state, one.detail, one.mend) for one in checkup.lines]
    return [*lines, *launch_lines(client)]


def launch_lines(client: Client) -> list[Line]:
    """Of each deployment, whether what it has could be launched here now."""
    from agent.cli.names import deployment_names
    from agent.wire.requests import PlanRequest
    from agent.wire.views import DecisionView

    found = []
    names = deployment_names(client)
    for name in names:
        try:
            plan = client.send("POST", "/v1/plan", PlanRequest(deployment=name), DecisionView)
        except Failure as failure:
            found.append(Line("launches", "warn", f"{name}: {failure.message}"))
            continue
        wrong = [f"{one.code}: {one.detail}" for one in plan.reasons if one.code in _LAUNCH]
        if wrong:
            told = f"{name} cannot be launched: {'; '.join(wrong)}"
            found.append(Line("launches", "error", told, f"enclave-agent plan {name}"))
    if not found:
        count = f"{len(names)} deployment{'' if len(names) == 1 else 's'}"
        found.append(Line("launches", "ok", f"nothing is in the way of those of {count}"))
    return found
