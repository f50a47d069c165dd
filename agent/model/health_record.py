"""What is remembered of an enclave's health, over restarts of the agent."""

from __future__ import annotations

import msgspec

from agent.model.clock import Instant
from agent.model.ids import EnclaveId


class HealthRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of the active enclave of a deployment; all but `falls` begins anew with another enclave.

    `unhealthy_since`: since when the launch `launch_uuid` was seen to be unhealthy without a
    break, after it had booted; None: it is not. `falls`: how often what served well was not well
    any more, in the whole life of the deployment; `fell_at`: when, the newest ones, oldest first.
    `relaunched_at`: when a launch of it was ended because it stayed unhealthy, oldest first, as
    far back as matters. `ending`: the launch that is being ended for that.
    """

    enclave: EnclaveId | None = None
    launch_uuid: str | None = None
    unhealthy_since: Instant | None = None
    falls: int = 0
    fell_at: tuple[Instant, ...] = ()
    relaunched_at: tuple[Instant, ...] = ()
    ending: str | None = None
