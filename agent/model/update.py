r"""An update: its durable row, its tagged states, and the status that a user sees.

blue_green (fresh has no soak, drain and retire; nothing is there to keep warm)::

    Preparing -> Launching -> Booting -> Verifying -> AwaitingAccept -> Switching -> Soaking
                                                       (staging only)      |           |  \
                                                                           |           | Reverting
    Finished(complete) <- Retiring <- Draining <---------------------------+-----------+     |
                                                                                             v
    any state before Switching --(failure | cancel)--> TearingDown ----> Finished(fail | cancel)

stop_then_start::

    Preparing -> AwaitingStop -> StoppingOld -> Releasing -> Launching -> Booting -> Verifying
                 (staging only)                                                         |
                                      Finished(complete) <- Soaking <- Switching <------+

A state holds only its own data. What is recorded is the intent: being in `Launching` means that
the VM may or may not have been started, and that starting it again must be harmless.
`TearingDown` destroys the new enclave; `Reverting` first gives the traffic back to the old one.
"""

from __future__ import annotations

from enum import StrEnum
from typing import assert_never

import msgspec

from agent.model.clock import Instant
from agent.model.ids import DeploymentName, EnclaveId, UpdateId
from agent.model.reasons import Reason, Strategy
from agent.model.revision import Fault, Slot


class UpdateStatus(StrEnum):
    """What a user sees."""

    PENDING = "pending"
    STARTED = "started"
    READY = "ready"
    FAILED = "failed"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class Step(StrEnum):
    """Where an update is, or where it ended."""

    PREPARE = "prepare"
    STOP_OLD = "stop_old"
    RELEASE = "release"
    LAUNCH = "launch"
    BOOT = "boot"
    VERIFY = "verify"
    ACCEPT = "accept"
    SWITCH = "switch"
    SOAK = "soak"
    DRAIN = "drain"
    RETIRE = "retire"
    REVERT = "revert"
    TEARDOWN = "teardown"


class Decided(StrEnum):
    """What has been decided for good. Only `switch` may still become `complete` or `fail`."""

    UNDECIDED = "undecided"
    SWITCH = "switch"
    COMPLETE = "complete"
    FAIL = "fail"
    CANCEL = "cancel"


class _State(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the tagged states."""


class Preparing(_State, frozen=True, kw_only=True, tag="preparing"):
    """Artifacts fetched and verified, disks built. Nothing of the host is touched."""


class AwaitingStop(_State, frozen=True, kw_only=True, tag="awaiting_stop"):
    """A staged stop_then_start, fully prepared, waits before the stop."""


class StoppingOld(_State, frozen=True, kw_only=True, tag="stopping_old"):
    """Traffic refuses, the old enclave is being stopped.

    `reset` is of earlier versions of the agent: its row says how far it is.
    """

    reset: bool = False


class Releasing(_State, frozen=True, kw_only=True, tag="releasing"):
    """The old enclave is gone; what it held is cleaned and handed to the new one."""


class Launching(_State, frozen=True, kw_only=True, tag="launching"):
    """The VM is being started."""


class Booting(_State, frozen=True, kw_only=True, tag="booting"):
    """The VM runs; its boot stages are not complete yet.

    `deadline` as it was first computed; progress extends it, up to `latest`. `answered_after_s`:
    from the launch to its first answer. `reached`: the stage that was under way at the last mark
    that was recorded: its first answer, the end of its GPUs' attestation, the containers' begin.
    """

    deadline: Instant
    latest: Instant | None = None
    answered_after_s: float | None = None
    reached: str | None = None
    gpus_attested: bool = False


class Verifying(_State, frozen=True, kw_only=True, tag="verifying"):
    """Booted; probes, containers and evidence are to be good together for the dwell.

    Failing probes do not count before `grace_until`: the start period, and after it as long as a
    probe of a running enclave takes to be called failing.
    """

    grace_until: Instant
    deadline: Instant


class AwaitingAccept(_State, frozen=True, kw_only=True, tag="awaiting_accept"):
    """Ready, staged: waits for accept or cancel; health goes on being checked."""


class Switching(_State, frozen=True, kw_only=True, tag="switching"):
    """The switch is decided and recorded; the data plane is being told."""


class Soaking(_State, frozen=True, kw_only=True, tag="soaking"):
    """Traffic is on the new enclave; the old one, if any, stays warm."""

    until: Instant
    drain_until: Instant


class Draining(_State, frozen=True, kw_only=True, tag="draining"):
    """The old enclave keeps its connections until they end or the time is up."""

    until: Instant


class Retiring(_State, frozen=True, kw_only=True, tag="retiring"):
    """The old enclave is being stopped and its resources returned."""


class Reverting(_State, frozen=True, kw_only=True, tag="reverting"):
    """Traffic goes back to the old enclave."""

    fault: Fault


class TearingDown(_State, frozen=True, kw_only=True, tag="tearing_down"):
    """The new enclave is being destroyed; then the update ends as decided.

    A stop of the old one that was decided before (`step` is `stop_old`) is finished all the same;
    `reset` as in `StoppingOld`. `since`: when this began.
    """

    step: Step
    fault: Fault | None
    reset: bool = False
    since: Instant | None = None


class Finished(_State, frozen=True, kw_only=True, tag="finished"):
    """Over. `step` is where it ended."""

    step: Step


UpdateState = (
    Preparing
    | AwaitingStop
    | StoppingOld
    | Releasing
    | Launching
    | Booting
    | Verifying
    | AwaitingAccept
    | Switching
    | Soaking
    | Draining
    | Retiring
    | Reverting
    | TearingDown
    | Finished
)

_PLAIN_STEPS: dict[type[_State], Step] = {
    Preparing: Step.PREPARE,
    AwaitingStop: Step.ACCEPT,
    StoppingOld: Step.STOP_OLD,
    Releasing: Step.RELEASE,
    Launching: Step.LAUNCH,
    Booting: Step.BOOT,
    Verifying: Step.VERIFY,
    AwaitingAccept: Step.ACCEPT,
    Switching: Step.SWITCH,
    Soaking: Step.SOAK,
    Draining: Step.DRAIN,
    Retiring: Step.RETIRE,
    Reverting: Step.REVERT,
    TearingDown: Step.TEARDOWN,
}


def step_of(state: UpdateState) -> Step:
    """The public step of a state."""
    return state.step if isinstance(state, Finished) else _PLAIN_STEPS[type(state)]


def status_of(strategy: Strategy, step: Step, decided: Decided) -> UpdateStatus:
    """The public status: total over its arguments.

    Until something is decided the step says it; a staged stop_then_start waits in `accept`
    before anything was booted, so that it is still pending there.
    """
    match decided:
        case Decided.COMPLETE:
            return UpdateStatus.COMPLETED
        case Decided.FAIL:
            return UpdateStatus.FAILED
        case Decided.CANCEL:
            return UpdateStatus.CANCELLED
        case Decided.SWITCH:
            return UpdateStatus.READY
        case Decided.UNDECIDED:
            return _undecided_status(strategy, step)
    assert_never(decided)


def _undecided_status(strategy: Strategy, step: Step) -> UpdateStatus:
    match step:
        case Step.PREPARE | Step.STOP_OLD | Step.RELEASE | Step.LAUNCH:
            return UpdateStatus.PENDING
        case Step.BOOT | Step.VERIFY:
            return UpdateStatus.STARTED
        case Step.ACCEPT:
            staged_stop = strategy is Strategy.STOP_THEN_START
            return UpdateStatus.PENDING if staged_stop else UpdateStatus.READY
        case Step.SWITCH | Step.SOAK | Step.DRAIN | Step.RETIRE:
            return UpdateStatus.READY
        case Step.REVERT | Step.TEARDOWN:
            return UpdateStatus.FAILED
    assert_never(step)


class Update(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The durable row. `enclave` is the new one, `from_enclave` the one that it replaces.

    `insisted`: the strategy that its request asked for by name, to be kept by a retry. `stop_s`:
    what the stop of the old version took a stop_then_start; `stopped_unasked`: its image is deaf.
    """

    id: UpdateId
    deployment: DeploymentName
    strategy: Strategy
    staging: bool
    revision: int
    tag: str
    enclave: EnclaveId
    slot: Slot
    from_revision: int | None = None
    from_tag: str | None = None
    from_enclave: EnclaveId | None = None
    state: UpdateState
    decided: Decided = Decided.UNDECIDED
    accepted: bool = False
    cancel_requested: bool = False
    revert_after_switch: bool = True
    restart_old_on_failure: bool = False
    insisted: Strategy | None = None
    requester: str = "local"
    request: str | None = None  # marks the request that asked for it, if that had a key
    epoch: int | None = None
    reasons: tuple[Reason, ...] = ()
    warnings: tuple[str, ...] = ()
    created_at: Instant
    started_at: Instant | None = None
    ready_at: Instant | None = None
    old_stopped_at: Instant | None = None
    switched_at: Instant | None = None
    finished_at: Instant | None = None
    downtime_s: float | None = None
    stop_s: float | None = None
    stopped_unasked: bool = False
    reset_connections: int = 0
    fault: Fault | None = None

    @property
    def running(self) -> bool:
        return not isinstance(self.state, Finished)

    @property
    def step(self) -> Step:
        return step_of(self.state)

    @property
    def status(self) -> UpdateStatus:
        return status_of(self.strategy, self.step, self.decided)
