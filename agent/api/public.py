"""What the status port shows: how deployments are, and nothing of what is theirs. Pure.

Everybody on the host may read that port. Of a tenant's deployment it tells name, status, versions,
listeners and health; null are the variables, the names of secrets, whatever may quote a guest
or name a secret (details, answers of probes, boot stages, the console), and where guests went.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import replace

from agent.wire.host_views import ProblemView, StatusView
from agent.wire.views import (
    DecisionView,
    DeploymentView,
    EnclaveView,
    FaultView,
    ProgressView,
    ReasonView,
    RollbackView,
    UpdateView,
)

ASK = "ask on the agent's unix socket: sudo enclave-agent status"


def public_status(status: StatusView, of_tenants: Iterable[bool]) -> StatusView:
    """`of_tenants`: of each problem, whether it is about a deployment."""
    problems = zip(status.problems, of_tenants, strict=True)
    egress = status.egress
    return replace(
        status,
        egress=None if egress is None else replace(egress, refused=None),
        deployments=[_deployment(one) for one in status.deployments],
        problems=[_problem(one) if tenant else one for one, tenant in problems],
    )


def _problem(one: ProblemView) -> ProblemView:
    return replace(one, detail=None, mend=ASK)


def _deployment(one: DeploymentView) -> DeploymentView:
    return replace(
        one,
        variables=None,
        secrets=None,
        stale_secrets=None,
        rollback=[_rollback(each) for each in one.rollback],
        next_update=_decision(one.next_update),
        update=_update(one.update) if one.update else None,
        enclaves=[_enclave(each) for each in one.enclaves],
        error=_fault(one.error),
        degraded=_fault(one.degraded),
        probes=None,
        reach=[replace(each, problem=None) for each in one.reach],
        warnings=[],
    )


def _enclave(one: EnclaveView) -> EnclaveView:
    return replace(one, teardown=None, guest_metrics=None, guest=None, containers=[], played=[])


def _rollback(one: RollbackView) -> RollbackView:
    return replace(one, reason=None)


def _decision(one: DecisionView) -> DecisionView:
    return replace(one, reasons=[_reason(each) for each in one.reasons], warnings=[], probes=None)


def _reason(one: ReasonView) -> ReasonView:
    return replace(one, detail=None)


def _fault(one: FaultView | None) -> FaultView | None:
    if one is None:
        return None
    return replace(one, detail=None, probe=None, response=None, console_tail=None)


def _update(one: UpdateView) -> UpdateView:
    return replace(
        one,
        reasons=[_reason(each) for each in one.reasons],
        warnings=[],
        error=_fault(one.error),
        serves=None,
        next_steps=[],
        progress=_progress(one.progress),
    )


def _progress(one: ProgressView) -> ProgressView:
    probes = [replace(each, last=None) for each in one.probes]
    return replace(one, boot_stages=None, probes=probes, note=None)
