"""Handlers of leases: promises of capacity until a time."""

from __future__ import annotations

import re

from agent.api import validation
from agent.api.body import shown
from agent.api.reply import Reply, json_reply
from agent.api.route import Call, Matches
from agent.model.ids import LeaseId
from agent.model.lease import Lease
from agent.updates.errors import UnknownNameError
from agent.wire.answers import Lease as LeaseView
from agent.wire.text import LEASE_PATTERN

_LEASE = re.compile(LEASE_PATTERN)


async def grant(call: Call) -> Reply:
    wanted = validation.new_lease(call.body)
    return _granted(call, await call.surface.engine.leases.grant(wanted, call.caller))


async def recall(call: Call, matches: Matches) -> Reply | None:
    """The answer to a request that made a lease, and whose answer nobody lived to keep."""
    made = await call.surface.engine.leases.made_by(matches)
    return None if made is None else _granted(call, made)


async def one(call: Call) -> Reply:
    return json_reply(_view(call, await call.surface.engine.leases.get(_lease_id(call))))


async def give_back(call: Call) -> Reply:
    await call.surface.engine.leases.give_back(_lease_id(call), call.caller)
    return Reply(204, b"")


def _lease_id(call: Call) -> LeaseId:
    text = call.names["id"]
    if not _LEASE.fullmatch(text):
        raise UnknownNameError(f"no lease {shown(text)}")
    return LeaseId(text)


def _granted(call: Call, lease: Lease) -> Reply:
    return json_reply(_view(call, lease), 201)


def _view(call: Call, lease: Lease) -> LeaseView:
    return LeaseView(
        id=lease.id,
        strategy=lease.strategy,
        gpus=list(lease.gpus),
        memory_mib=lease.demand.memory_mib,
        vcpus=lease.demand.vcpus,
        tee_ids=lease.demand.tee_ids,
        address=lease.address,
        expires_at=lease.expires_at.shown(call.surface.engine.snapshot.observed_at),
    )
