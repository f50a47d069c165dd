"""How a request fails: refused, conflicting, unknown, or impossible as it stands."""

from __future__ import annotations

from agent.errors import AgentError
from agent.model.reasons import Decision, Reason


class RefusedError(AgentError):
    """An admission said no. `code` is the first reason's."""

    def __init__(self, decision: Decision) -> None:
        super().__init__("; ".join(reason.detail for reason in decision.reasons) or "refused")
        self.decision = decision

    @property
    def code(self) -> str:
        return str(self.decision.reasons[0].code) if self.decision.reasons else "refused"

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return self.decision.reasons


class ConflictError(AgentError):
    """The request does not fit the state that things are in."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self._code = code

    @property
    def code(self) -> str:
        return self._code


_LET_IN = (
    "If the coordinator was restored from a backup, run on this host: "
    "enclave-agent coordinator-epoch reset"
)


class StaleEpochError(ConflictError):
    """The coordinator that asks is one of the past: a later one was seen."""

    def __init__(self, epoch: int, highest: int) -> None:
        super().__init__(
            "stale_epoch",
            f"epoch {epoch} is over: this host has seen {highest}. {_LET_IN}",
        )
        self.epoch = epoch
        self.highest = highest


class EpochLeapError(StaleEpochError):
    """An epoch so far above all that were seen that no coordinator counted its way to it.

    Taken, it would shut out every coordinator for good.
    """

    def __init__(self, epoch: int, highest: int) -> None:
        ConflictError.__init__(
            self,
            "epoch_leap",
            f"epoch {epoch} leaps too far beyond {highest}, the highest that this host has seen. "
            f"{_LET_IN}",
        )
        self.epoch = epoch
        self.highest = highest


class AbandonedError(ConflictError):
    """Whoever asked has gone before the request was admitted: dropped, it may come again."""

    def __init__(self) -> None:
        super().__init__("abandoned", "whoever asked has gone: nothing was changed")


class UnknownNameError(AgentError):
    """No deployment, enclave, revision or update of that name."""

    @property
    def code(self) -> str:
        return "not_found"


class LeaseExpiredError(AgentError):
    """The lease was made here, and does not hold any more."""

    @property
    def code(self) -> str:
        return "lease_expired"


class FieldError(AgentError):
    """A well-formed request with an impossible value. `path` is the field's."""

    def __init__(self, path: str, detail: str) -> None:
        super().__init__(f"{path}: {detail}")
        self.path = path

    @property
    def code(self) -> str:
        return "bad_request"


class PrunedError(AgentError):
    """Those events are gone; `oldest` is the first that is kept."""

    def __init__(self, oldest: int) -> None:
        super().__init__(f"events before {oldest} were pruned")
        self.oldest = oldest

    @property
    def code(self) -> str:
        return "pruned"
