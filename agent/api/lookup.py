"""Names in paths: checked, then looked up in the snapshot."""

from __future__ import annotations

import re

from agent.api.body import shown
from agent.api.problems import starting
from agent.api.route import Call
from agent.model.ids import DeploymentName, EnclaveId, parse_deployment_name
from agent.updates.errors import FieldError, UnknownNameError
from agent.updates.snapshot.snapshot import DeploymentFacts, EnclaveFacts
from agent.wire.text import ENCLAVE_PATTERN

_ENCLAVE = re.compile(ENCLAVE_PATTERN)


def new_name(call: Call) -> DeploymentName:
    """The name of a deployment to be created; FieldError with the rule."""
    try:
        return parse_deployment_name(call.names["name"])
    except ValueError as error:
        raise FieldError("name", str(error)) from None


def deployment_name(call: Call) -> DeploymentName:
    """A name that a deployment may have; UnknownNameError for one that none can have."""
    text = call.names["name"]
    try:
        return parse_deployment_name(text)
    except ValueError as error:
        raise UnknownNameError(f"no deployment {shown(text)}: a name {error}") from None


def deployment(call: Call) -> DeploymentFacts:
    """Raises UnknownNameError."""
    name = deployment_name(call)
    facts = call.surface.engine.snapshot.deployments.get(name)
    if facts is None:
        _refuse_starting(call)
        raise UnknownNameError(f"no deployment {shown(name)}")
    return facts


def enclave(call: Call) -> EnclaveFacts:
    """Raises UnknownNameError."""
    text = call.names["id"]
    if _ENCLAVE.fullmatch(text):
        for facts in call.surface.engine.snapshot.deployments.values():
            for one in facts.enclaves:
                if one.row.id == text:
                    return one
    _refuse_starting(call)
    raise UnknownNameError(f"no enclave {shown(text)}")


def _refuse_starting(call: Call) -> None:
    """What is not there yet may be there in a moment: nobody is told that it does not exist."""
    snapshot = call.surface.engine.snapshot
    if not snapshot.ready and snapshot.store_damage is None:
        raise starting()


def enclave_id(call: Call) -> EnclaveId:
    """The id, by its form; what is gone may still have a console."""
    text = call.names["id"]
    if not _ENCLAVE.fullmatch(text):
        raise UnknownNameError(f"no enclave {shown(text)}")
    return EnclaveId(text)
