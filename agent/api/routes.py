"""The one table of routes: served, authorised and described from here."""

from __future__ import annotations

from typing import Any

from agent.api import changes, doctor, gpus, images, leases, reads, validation
from agent.api.query import AFTER, DEPLOYMENT, FOLLOW, LIMIT, NONCE, TAIL
from agent.api.roles import Permission
from agent.api.route import DocumentedAnswer, Handler, HttpRoute
from agent.wire import answers as a
from agent.wire import gpu_views as g
from agent.wire import host_views as h
from agent.wire import requests as r
from agent.wire import views as v

_D = "/v1/deployments/{name}"
_U = f"{_D}/updates/current"
_E = "/v1/enclaves/{id}"
_OF_A_DEPLOYMENT = (("deployment",), ("demand",))
_PLAN_NEEDS = (
    _OF_A_DEPLOYMENT,
    (("demand",), ("deployment", "tag", *validation.OF_AN_UPDATE)),
)
_LEASE_NEEDS = (_OF_A_DEPLOYMENT, (("demand",), ("deployment", "tag")))


def _get(
    path: str, name: str, summary: str, handler: Handler, kind: Any, **more: Any
) -> HttpRoute:
    return HttpRoute(
        method="GET",
        path=path,
        name=name,
        summary=summary,
        permission=more.pop("permission", Permission.READ),
        handler=handler,
        answers=more.pop("answers", (DocumentedAnswer(200, summary, kind),)),
        **more,
    )


def _do(
    method: str,
    path: str,
    name: str,
    summary: str,
    handler: Handler,
    *answers: DocumentedAnswer,
    **more: Any,
) -> HttpRoute:
    return HttpRoute(
        method=method,
        path=path,
        name=name,
        summary=summary,
        permission=more.pop("permission", Permission.CHANGE),
        handler=handler,
        answers=answers,
        **more,
    )


def _public(
    path: str, name: str, summary: str, handler: Handler, *answers: DocumentedAnswer
) -> HttpRoute:
    return _get(path, name, summary, handler, None, permission=Permission.STATUS, answers=answers)


_UPDATE = DocumentedAnswer(202, "The update that was admitted.", v.UpdateView)
_DEPLOYMENT = DocumentedAnswer(202, "The deployment as it is now.", a.DeploymentAnswer)
_CALLED_OFF = DocumentedAnswer(
    200, "No update was running: requests that were not admitted yet.", a.DeploymentAnswer
)
_WELL = DocumentedAnswer(200, "It is.", h.HealthView)
_UNWELL = DocumentedAnswer(503, "It is not; the reasons say why.", h.HealthView)
_LEASE = DocumentedAnswer(201, "The lease.", a.Lease)
_TEXT = "text/plain"


def _begin(path: str, name: str, summary: str, handler: Handler, **more: Any) -> HttpRoute:
    """What begins an update."""
    more |= {"problems": (404, 409), "recall": changes.recalling(changes.admitted)}
    return _do("POST", path, name, summary, handler, _UPDATE, **more)


ROUTES: tuple[HttpRoute, ...] = (
    _public("/healthz", "healthz", "Whether the agent lives.", reads.healthz, _WELL, _UNWELL),
    _public("/readyz", "readyz", "Whether the agent is ready.", reads.readyz, _WELL, _UNWELL),
    _public(
        "/status",
        "status",
        "All of it.",
        reads.status,
        DocumentedAnswer(200, "All.", h.StatusView),
    ),
    _public(
        "/metrics",
        "metrics",
        "Numbers for a scraper.",
        reads.metrics,
        DocumentedAnswer(200, "Prometheus text.", media=_TEXT),
    ),
    _public(
        "/openapi.json",
        "openapi",
        "This description.",
        reads.openapi,
        DocumentedAnswer(200, "OpenAPI 3.1.", dict[str, Any]),
    ),
    _get(
        "/v1/inventory",
        "inventory",
        "GPUs, switches and host.",
        gpus.inventory,
        g.InventoryView,
        problems=(503,),
    ),
    _do(
        "POST",
        "/v1/gpus/{bdf}/release",
        "release_gpu",
        "Lift a quarantine, or forget a GPU that is absent.",
        gpus.release,
        DocumentedAnswer(200, "The GPU.", g.GpuView),
        problems=(404, 409),
    ),
    _do(
        "POST",
        "/v1/gpus/{bdf}/recover",
        "recover_gpu",
        "Take a broken GPU off the bus and have its port look for it anew.",
        gpus.recover,
        DocumentedAnswer(200, "The GPU.", g.GpuView),
        problems=(404, 409),
    ),
    _get("/v1/capacity", "capacity", "What is free of what.", reads.capacity, h.CapacityView),
    _do(
        "POST",
        "/v1/plan",
        "plan",
        "What an update would be. Changes nothing.",
        reads.plan,
        DocumentedAnswer(200, "The decision.", v.DecisionView),
        permission=Permission.READ,
        body=r.PlanRequest,
        body_required=True,
        body_needs=_PLAN_NEEDS,
        problems=(404, 409),
    ),
    _do(
        "POST",
        "/v1/leases",
        "create_lease",
        "Reserve capacity until a time.",
        leases.grant,
        _LEASE,
        body=r.LeaseRequest,
        body_required=True,
        body_needs=_LEASE_NEEDS,
        problems=(404, 409),
        recall=leases.recall,
    ),
    _get("/v1/leases/{id}", "lease", "One lease.", leases.one, a.Lease, problems=(404, 410)),
    _do(
        "DELETE",
        "/v1/leases/{id}",
        "delete_lease",
        "Give capacity back.",
        leases.give_back,
        DocumentedAnswer(204, "It is given back.", media=""),
        problems=(404, 410),
    ),
    _get("/v1/deployments", "deployments", "All, by name.", reads.deployments, a.Deployments),
    _get(_D, "deployment", "One.", reads.one_deployment, v.DeploymentView, problems=(404,)),
    _do(
        "PUT",
        _D,
        "deploy",
        "Create a deployment and start it.",
        changes.deploy,
        DocumentedAnswer(202, "The deployment and its first update.", a.Deployed),
        body=r.DeployRequest,
        body_required=True,
        problems=(404, 409),
        recall=changes.recalling(changes.created),
    ),
    _do("DELETE", _D, "delete", "Remove it.", changes.delete, _DEPLOYMENT, problems=(404, 409)),
    _begin(f"{_D}/start", "start", "Run.", changes.start),
    _do("POST", f"{_D}/stop", "stop", "Stop.", changes.stop, _DEPLOYMENT, problems=(404, 409)),
    _begin(
        f"{_D}/rollback",
        "rollback",
        "Go back to an older revision.",
        changes.rollback,
        body=r.RollbackRequest,
    ),
    _get(
        f"{_D}/secrets",
        "secrets",
        "The names of its secrets, and how each stands; never a value.",
        reads.secrets,
        a.Secrets,
        problems=(404,),
    ),
    _do(
        "PUT",
        f"{_D}/secrets",
        "set_secrets",
        "Record new values; restarts nothing.",
        changes.set_secrets,
        DocumentedAnswer(200, "The names that are stale now.", a.StaleSecrets),
        body=r.SecretChanges,
        body_required=True,
        problems=(404, 409),
    ),
    _begin(f"{_D}/updates", "update", "Update it.", changes.update, body=r.UpdateRequest),
    _get(f"{_D}/updates", "updates", "Newest first.", reads.updates, a.Updates, problems=(404,)),
    _get(
        _U,
        "current_update",
        "The running update, or the newest.",
        reads.current_update,
        v.UpdateView,
        problems=(404,),
    ),
    _do("POST", f"{_U}/accept", "accept", "Go on.", changes.accept, _UPDATE, problems=(404, 409)),
    _do(
        "POST",
        f"{_U}/cancel",
        "cancel",
        "Call off the running update, and requests that are not admitted yet.",
        changes.cancel,
        _UPDATE,
        _CALLED_OFF,
        problems=(404, 409),
    ),
    _begin(f"{_U}/retry", "retry", "Try again.", changes.retry),
    _get("/v1/enclaves", "enclaves", "All.", reads.enclaves, a.Enclaves),
    _get(_E, "enclave", "One.", reads.one_enclave, v.EnclaveView, problems=(404,)),
    _get(
        f"{_E}/boot-stages",
        "boot_stages",
        "As the guest gave them.",
        reads.boot_stages,
        dict[str, Any],
        problems=(404,),
    ),
    _get(
        f"{_E}/console",
        "console",
        "What the guest printed last.",
        reads.console,
        None,
        permission=Permission.DEBUG,
        answers=(DocumentedAnswer(200, "The newest of it.", media=_TEXT),),
        query=(TAIL,),
        problems=(404,),
    ),
    _get(
        "/v1/consoles",
        "ended_consoles",
        "What is kept of consoles of enclaves that are gone.",
        reads.ended_consoles,
        a.EndedConsoles,
        permission=Permission.DEBUG,
        query=(DEPLOYMENT,),
    ),
    _get(
        f"{_E}/attestation",
        "attestation",
        "Evidence, and what it is worth.",
        reads.attestation,
        a.AttestationAnswer,
        query=(NONCE,),
        problems=(404, 501, 503),
    ),
    _do(
        "POST",
        f"{_D}/accept-chip",
        "accept_chip",
        "Have the processor that its newest evidence names be this machine's.",
        changes.accept_chip,
        DocumentedAnswer(200, "What is known of the machine now, and was before.", a.ChipAccepted),
        permission=Permission.HOST,
        problems=(404, 409, 501),
    ),
    _get(
        "/v1/doctor",
        "doctor",
        "What this host can and cannot do, as the agent sees it.",
        doctor.look,
        a.Checkup,
        permission=Permission.HOST,
    ),
    _get("/v1/images", "images", "What is kept of releases.", images.kept, a.Images),
    _do(
        "POST",
        "/v1/images/prune",
        "prune_images",
        "Remove images that nothing needs.",
        images.prune,
        DocumentedAnswer(200, "What was removed.", a.Images),
        body=r.PruneRequest,
        body_required=True,
    ),
    _get(
        "/v1/events",
        "events",
        "Every transition and action, in order.",
        reads.events,
        None,
        answers=(
            DocumentedAnswer(200, "A page, or a stream.", a.Events, also=("text/event-stream",)),
        ),
        query=(AFTER, FOLLOW, LIMIT),
        problems=(410, 503),
    ),
    _do(
        "POST",
        "/v1/host/drain",
        "drain",
        "No new admissions.",
        changes.drain,
        DocumentedAnswer(200, "It drains.", a.Draining),
    ),
    _do(
        "POST",
        "/v1/host/undrain",
        "undrain",
        "Admit again.",
        changes.undrain,
        DocumentedAnswer(200, "It admits.", a.Draining),
    ),
    _do(
        "POST",
        "/v1/host/coordinator-epoch/reset",
        "reset_coordinator_epoch",
        "Forget the highest epoch of a coordinator that was seen.",
        changes.reset_epoch,
        DocumentedAnswer(200, "What was forgotten.", a.EpochReset),
        permission=Permission.HOST,
    ),
)
