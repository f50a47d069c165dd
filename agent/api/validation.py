"""From a request's struct to the engine's request: every value checked, once, here."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

from msgspec import UNSET, UnsetType

from agent.model import ids
from agent.model.ids import DeploymentName
from agent.model.reasons import DecidedStrategy, Decision, Reason, ReasonCode
from agent.model.resources import Demand, Listen, Publish
from agent.model.revision import ProbeOptions
from agent.updates.errors import FieldError, RefusedError
from agent.updates.orders import (
    FORGET_PROBES,
    KEEP_PROBES,
    Change,
    NewDeployment,
    NewLease,
    PlanQuestion,
    ProbesChange,
)
from agent.wire import requests as wire
from agent.wire.text import (
    DOMAIN_PATTERN,
    LEASE_PATTERN,
    LISTEN_PATTERN,
    MAX_NAMES,
    MAX_PROBE_PATH,
    MAX_VALUE_BYTES,
    NO_SECRETS,
    PROBE_HOST_PATTERN,
    PROBE_PATH_PATTERN,
)

T = TypeVar("T")
V = TypeVar("V", str, str | None)

_LISTEN = re.compile(LISTEN_PATTERN)
_DOMAIN = re.compile(DOMAIN_PATTERN)
_PROBE_PATH = re.compile(PROBE_PATH_PATTERN)
_PROBE_HOST = re.compile(PROBE_HOST_PATTERN)
_LEASE = re.compile(LEASE_PATTERN)
# What a plan says beside the deployment and its tag; nothing of it goes with a bare demand.
OF_AN_UPDATE = (
    "variables",
    "secrets",
    "unset_variables",
    "unset_secrets",
    "listen",
    "publish",
    "domain",
    "probes",
    "debug",
)


def new_deployment(name: DeploymentName, body: wire.DeployRequest) -> NewDeployment:
    """Raises FieldError with the field's path, RefusedError if two listeners overlap."""
    listen = _listen("listen", body.listen)
    publish = _publish(body.publish)
    _refuse_overlap(listen, publish)
    return NewDeployment(
        name=name,
        repo=_parsed("repo", body.repo or name, ids.parse_repo),
        tag=_parsed("tag", body.tag, ids.parse_tag),
        listen=listen,
        publish=publish,
        domain=_domain(body.domain),
        probes=_probe_options(body.probes),
        variables=_values("variables", body.variables),
        secrets=_secrets("secrets", body.secrets),
        staging=body.staging,
        lease=_lease(body.lease),
    )


def change(body: wire.UpdateRequest) -> Change:
    """Raises FieldError with the field's path, RefusedError if two listeners overlap."""
    listen, publish = _new_listeners(body)
    return Change(
        tag=body.tag if body.tag is UNSET else _parsed("tag", body.tag, ids.parse_tag),
        listen=listen,
        publish=publish,
        domain=body.domain if body.domain is UNSET else _domain(body.domain),
        probes=_probes_change(body.probes),
        variables=_changes("variables", body.variables),
        secrets=body.secrets
        if body.secrets is None or body.secrets is UNSET
        else _secrets("secrets", body.secrets),
        staging=body.staging,
        strategy=None if body.strategy is UNSET else body.strategy,
        revert_after_switch=None
        if body.revert_after_switch is UNSET
        else body.revert_after_switch,
        restart_old_on_failure=body.restart_old_on_failure,
        accept_moved_tag=body.accept_moved_tag is True,
        debug=body.debug,
        lease=_lease(body.lease),
    )


def plan_question(body: wire.PlanRequest | wire.LeaseRequest) -> PlanQuestion:
    """Raises FieldError with the field's path."""
    if body.deployment is UNSET and body.demand is UNSET:
        raise FieldError("deployment", "a deployment or a demand is needed")
    full = body if isinstance(body, wire.PlanRequest) else wire.PlanRequest()
    of_a_deployment = (body.deployment, body.tag, *(getattr(full, one) for one in OF_AN_UPDATE))
    if body.demand is not UNSET and any(member is not UNSET for member in of_a_deployment):
        raise FieldError("demand", "either a demand, or a deployment with a tag")
    name = body.deployment
    demand = body.demand
    listen, publish = _new_listeners(full)
    return PlanQuestion(
        deployment=None
        if name is UNSET
        else _parsed("deployment", name, ids.parse_deployment_name),
        tag=None if body.tag is UNSET else _parsed("tag", body.tag, ids.parse_tag),
        demand=None if demand is UNSET else _demand(demand),
        strategy=None if body.strategy is UNSET else body.strategy,
        staging=full.staging,
        accept_moved_tag=full.accept_moved_tag is True,
        debug=full.debug,
        variables=_names("variables", full.variables or ()),
        secrets=_names("secrets", full.secrets or ()),
        unset_variables=_names("unset_variables", full.unset_variables or ()),
        unset_secrets=_names("unset_secrets", full.unset_secrets or ()),
        listen=listen,
        publish=publish,
        domain=full.domain if full.domain is UNSET else _domain(full.domain),
        probes=_probes_change(full.probes),
    )


def new_lease(body: wire.LeaseRequest) -> NewLease:
    """Raises FieldError with the field's path."""
    wanted = plan_question(body)
    return NewLease(
        deployment=wanted.deployment,
        tag=wanted.tag,
        demand=wanted.demand,
        strategy=wanted.strategy,
        ttl_s=body.ttl_s,
    )


def rollback_target(body: wire.RollbackRequest) -> str | int | None:
    """A tag, a revision's number, or None for the one before."""
    return _parsed("to", body.to, ids.parse_tag) if isinstance(body.to, str) else body.to


def secret_values(values: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """Raises FieldError that names the secret, never its value."""
    return _secrets("", values)


def _demand(body: wire.DemandRequest) -> Demand:
    return Demand(
        gpus=body.gpus, memory_mib=body.memory_mib, vcpus=body.vcpus, disk_mib=body.disk_mib
    )


def _parsed(field: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise FieldError(field, str(error)) from None


def _matching(field: str, text: str | None, form: re.Pattern[str], rule: str) -> str | None:
    if text is not None and not form.fullmatch(text):
        raise FieldError(field, rule)
    return text


def _lease(text: str | None) -> str | None:
    return _matching("lease", text, _LEASE, "must be a lease's id: 16 of a-z and 2-7")


def _probe_options(body: wire.ProbesRequest | None) -> ProbeOptions:
    if body is None:
        return ProbeOptions()
    return ProbeOptions(path=_probe_path(body.path), host=_probe_host(body.host))


def _probes_change(body: wire.ProbesChange | UnsetType | None) -> ProbesChange:
    if body is UNSET:
        return KEEP_PROBES
    if body is None:
        return FORGET_PROBES
    return ProbesChange(
        path=UNSET if body.path is UNSET else _probe_path(body.path),
        host=UNSET if body.host is UNSET else _probe_host(body.host),
    )


def _probe_path(text: str | None) -> str | None:
    if text is not None and len(text) > MAX_PROBE_PATH:
        raise FieldError("probes.path", f"must be at most {MAX_PROBE_PATH} characters")
    rule = "must be a literal path such as /health, without '*', '%', '//', '.' or '..' segments"
    return _matching("probes.path", text, _PROBE_PATH, rule)


def _probe_host(text: str | None) -> str | None:
    rule = "must be a host name such as api.example.com, or one with :PORT"
    return _matching("probes.host", text, _PROBE_HOST, rule)


def _listen(field: str, text: str) -> Listen:
    listen = _parsed(field, text, Listen.parse)
    if not _LISTEN.fullmatch(text):
        raise FieldError(field, "must be ADDRESS:PORT or [IPV6]:PORT in plain notation")
    return listen


def _publish(entries: tuple[wire.PublishRequest, ...]) -> tuple[Publish, ...]:
    return tuple(
        Publish(listen=_listen(f"publish[{n}].listen", one.listen), guest_port=one.guest_port)
        for n, one in enumerate(entries)
    )


def _refuse_overlap(listen: Listen | None, publish: tuple[Publish, ...]) -> None:
    """A request that fights with itself is refused like one that fights with another."""
    seen = [] if listen is None else [listen]
    for one in publish:
        for other in seen:
            if one.listen.overlaps(other):
                detail = f"{one.listen} and {other} in this request are one listener"
                reason = Reason(code=ReasonCode.LISTEN_IN_USE, detail=detail)
                raise RefusedError(Decision(strategy=DecidedStrategy.REFUSE, reasons=(reason,)))
        seen.append(one.listen)


def _new_listeners(
    body: wire.UpdateRequest | wire.PlanRequest,
) -> tuple[Listen | UnsetType, tuple[Publish, ...] | UnsetType]:
    """Those that are asked for, none in the way of another."""
    listen = body.listen if body.listen is UNSET else _listen("listen", body.listen)
    publish = body.publish if body.publish is UNSET else _publish(body.publish or ())
    _refuse_overlap(None if listen is UNSET else listen, () if publish is UNSET else publish)
    return listen, publish


def _domain(text: str | None) -> str | None:
    return _matching("domain", text, _DOMAIN, "must be a host name in lower case")


def _names(field: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(
        _parsed(f"{field}[{n}]", name, ids.parse_variable_name) for n, name in enumerate(names)
    )


def _changes(
    field: str, values: Mapping[str, str | None] | UnsetType | None
) -> Mapping[str, str | None] | UnsetType | None:
    return values if values is None or values is UNSET else _values(field, values)


def _secrets(field: str, values: Mapping[str, V]) -> Mapping[str, V]:
    """As `_values`, with what a guest takes for no value refused."""
    for name, value in _values(field, values).items():
        if value in NO_SECRETS:
            place = f"{field}.{name}" if field else name
            raise FieldError(
                place, "must not be empty or the text null: guests take it as missing"
            )
    return values


def _values(field: str, values: Mapping[str, V]) -> Mapping[str, V]:
    """Names and sizes. An error names the entry; it never shows a value."""
    if len(values) > MAX_NAMES:
        raise FieldError(
            field or "body", f"has {len(values)} entries, at most {MAX_NAMES} will do"
        )
    for name, value in values.items():
        place = f"{field}.{name[:80]}" if field else name[:80]
        _parsed(place, name, ids.parse_variable_name)
        if value is None:
            continue
        if "\0" in value:
            raise FieldError(place, "must not contain NUL")
        if len(value) > MAX_VALUE_BYTES or len(value.encode()) > MAX_VALUE_BYTES:
            raise FieldError(place, f"is over {MAX_VALUE_BYTES // 1024} KiB")
    return values
