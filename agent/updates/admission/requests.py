"""From a validated request to an `Ask`: the release is read, names are compared with its needs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from agent.model.reasons import DecidedStrategy, Decision, Reason, ReasonCode
from agent.model.release import Release
from agent.model.resources import GUEST_HTTPS_PORT, Listen, Publish
from agent.model.revision import LOCALHOST, Revision
from agent.releases.port import ReleaseError, Releases
from agent.traffic.port import Traffic
from agent.updates.admission.admit import Ask, secrets_missing
from agent.updates.admission.launchable import Launchable, any_launch
from agent.updates.admission.secret_names import (
    DOMAIN,
    check_declared,
    unread_variables,
    unread_warnings,
)
from agent.updates.errors import FieldError, RefusedError
from agent.updates.orders import Change, NewDeployment
from agent.wire.text import DOMAIN_PATTERN

_HOST_NAME = re.compile(DOMAIN_PATTERN)


async def resolve(
    releases: Releases,
    repo: str,
    tag: str,
    launchable: Launchable = any_launch,
    digest: str | None = None,
) -> Release:
    """The release, or a refusal with the reason. Raises RefusedError, ReleaseSourceError.

    `digest`: its contents as they were taken before, for which the source need not answer.
    """
    try:
        if digest is not None:
            await releases.require_signed(repo, tag, digest)
        release = await releases.resolve(repo, tag, digest)
        await launchable(release)
    except ReleaseError as error:
        raise RefusedError(refusal(error)) from error
    return release


async def require_signed(releases: Releases, revision: Revision) -> None:
    """A revision of before, asked for what a tag is asked today.

    Raises RefusedError, ReleaseSourceError.
    """
    try:
        await releases.require_signed(revision.repo, revision.tag, revision.release_digest)
    except ReleaseError as error:
        raise RefusedError(refusal(error)) from error


def refusal(error: ReleaseError) -> Decision:
    """A release that cannot be used, as a decision."""
    known = {str(code) for code in ReasonCode}
    code = ReasonCode(error.code) if error.code in known else ReasonCode.RELEASE_INVALID
    reason = Reason(code=code, detail=str(error))
    return Decision(strategy=DecidedStrategy.REFUSE, reasons=(reason,))


def ask_for_new(
    request: NewDeployment, release: Release, secrets: Mapping[str, int], traffic: Traffic
) -> Ask:
    """Raises FieldError."""
    check_declared(request.secrets, release.secret_names, "secrets.")
    ask = Ask(
        name=request.name,
        release=release,
        listen=request.listen,
        publish=request.publish,
        brought=_listeners(request.listen, request.publish),
        domain=request.domain,
        probes=request.probes,
        variables=request.variables,
        secrets=secrets,
        staging=request.staging,
        lease=request.lease,
        warnings=(
            *unread_warnings(request.secrets, release.secret_names),
            *unread_variables(request.variables, release.env_names),
            *release.guest_refusals,
        ),
    )
    return _checked(ask, traffic)


def ask_for_change(
    change: Change,
    before: Revision,
    release: Release,
    secrets: Mapping[str, int],
    traffic: Traffic,
    *,
    revert_after_switch: bool,
) -> Ask:
    """What is absent in the change stays as it was. Raises FieldError."""
    values = {} if change.secrets is msgspec.UNSET else change.secrets or {}
    check_declared(given(values), release.secret_names, "secrets.")
    variables = dict(before.variables)
    if change.variables is None:
        variables = {}
    elif change.variables is not msgspec.UNSET:
        for name, value in change.variables.items():
            if value is None:
                variables.pop(name, None)
            else:
                variables[name] = value
    wanted = change.revert_after_switch
    listen = before.listen if change.listen is msgspec.UNSET else change.listen
    publish = before.publish if change.publish is msgspec.UNSET else change.publish
    had = {one.listen for one in before.listeners}
    ask = Ask(
        name=before.deployment,
        release=release,
        listen=listen,
        publish=publish,
        brought=tuple(one for one in _listeners(listen, publish) if one[1] not in had),
        domain=before.domain if change.domain is msgspec.UNSET else change.domain,
        probes=change.probes.applied(before.probes),
        guest_domain=_kept_guest_domain(before),
        variables=variables,
        secrets=secrets,
        staging=change.staging,
        strategy=change.strategy,
        revert_after_switch=revert_after_switch if wanted is None else wanted,
        restart_old_on_failure=change.restart_old_on_failure,
        lease=change.lease,
        warnings=(
            *unread_warnings(given(values), release.secret_names),
            *unread_variables(_given_variables(change), release.env_names),
            *release.guest_refusals,
        ),
    )
    return _checked(ask, traffic)


def _listeners(listen: Listen, publish: tuple[Publish, ...]) -> tuple[tuple[str, Listen], ...]:
    """Each with the field that says it, the HTTPS one first."""
    return (("listen", listen), *((f"publish[{i}]", one.listen) for i, one in enumerate(publish)))


def given(values: Mapping[str, str | None]) -> list[str]:
    """The names that a request brings values of; None removes one."""
    return [name for name, value in values.items() if value is not None]


def _given_variables(change: Change) -> list[str]:
    variables = change.variables
    return [] if variables is None or variables is msgspec.UNSET else given(variables)


def _kept_guest_domain(before: Revision) -> str | None:
    """The name that the guest has by default: it stays, whatever the default is now.

    None if somebody chose it, which then says it again, and for `localhost`, which is none.
    """
    chosen = before.domain is not None or DOMAIN in before.variables
    return None if chosen or before.guest_domain == LOCALHOST else before.guest_domain


def _checked(ask: Ask, traffic: Traffic) -> Ask:
    """With the refusals that the release and the data plane add. Raises FieldError."""
    _check_listeners(ask, traffic)
    _check_probe_path(ask)
    ask = _with_domain(ask)
    needed = () if ask.release.fetches_secrets else ask.release.secret_names
    missing = sorted(set(needed) - set(ask.secrets))
    _check_variables(ask, missing)
    obstacles = (secrets_missing(missing),) if missing else ()
    return msgspec.structs.replace(ask, obstacles=obstacles)


def _check_variables(ask: Ask, missing_secrets: Sequence[str]) -> None:
    """All that has no value is told at once: the secrets, too."""
    given_ones = {DOMAIN, *ask.variables}
    missing = sorted(name for name in ask.release.env_names if name not in given_ones)
    if not missing:
        return
    detail = "the release's config needs a value for it"
    if len(missing) + len(missing_secrets) > 1:
        kinds = {"variables": missing, "secrets": missing_secrets}
        every = (f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names)
        detail = f"the release's config needs values for {' and '.join(every)}"
    raise FieldError(f"variables.{missing[0]}", detail)


def _check_probe_path(ask: Ask) -> None:
    """A path that can only be answered by the shim itself would tell nothing of the workload."""
    path = ask.probes.path
    if path is None or ask.release.shim.lets_through(path.partition("?")[0]):
        return
    listed = ", ".join(ask.release.shim.paths[:8]) or "all but its own documents"
    detail = f"{path} does not reach the workload of {ask.release.tag}: its shim lets through"
    raise FieldError("probes.path", f"{detail} {listed}; name one of those, or null for none")


def _with_domain(ask: Ask) -> Ask:
    """The name of the guest, where the request says it: its domain, or a variable DOMAIN.

    A variable that says the same as the domain is left out: the guest is given it anyhow.
    """
    variables = dict(ask.variables)
    said = variables.get(DOMAIN)
    if said is None:
        return ask if ask.domain is None else msgspec.structs.replace(ask, guest_domain=ask.domain)
    if not _HOST_NAME.fullmatch(said):
        raise FieldError(f"variables.{DOMAIN}", "must be a host name in lower case")
    if ask.domain is not None:
        if said != ask.domain:
            raise FieldError(
                f"variables.{DOMAIN}",
                f"is not the deployment's domain ({ask.domain}), which the guest is given: "
                "leave it out",
            )
        del variables[DOMAIN]
    return msgspec.structs.replace(ask, guest_domain=said, variables=variables)


def _check_listeners(ask: Ask, traffic: Traffic) -> None:
    seen: list[tuple[str, Listen]] = []
    ports = [GUEST_HTTPS_PORT, *(one.guest_port for one in ask.publish)]
    for (path, listen), port in zip(_listeners(ask.listen, ask.publish), ports, strict=True):
        sentence = traffic.refusal(listen)
        if sentence:
            raise FieldError(path, sentence)
        for other_path, other in seen:
            if listen.overlaps(other):
                raise FieldError(path, f"overlaps {other_path} ({other})")
        seen.append((path, listen))
        inside = ask.release.inbound_ports
        if port != GUEST_HTTPS_PORT and port not in inside:
            listed = ", ".join(map(str, inside)) or "none"
            raise FieldError(
                path,
                f"guest port {port} is not among the release's inbound-ports ({listed})",
            )
