"""The capacity decision on a full board: 8 GPUs and 4 switches, 16 deployments, of each kind.

Asked are an update beside, one that has to stop the old, and a whole board that is not there to
be had: the slowest of the three counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from agent.capacity.accounts import Accounts
from agent.capacity.decision import decide
from agent.capacity.supply import Admission, Holding, HostSupply, Question
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.lease import Claim, ClaimKind
from agent.model.reasons import DecidedStrategy
from agent.model.resources import Demand
from bench.daemon import BenchError
from bench.figures import Bound, Figure, median
from simulator.boards import hgx_hopper
from simulator.manual_clock import ManualClock

DEPLOYMENTS = 16
_TIMES = 500


def decision_figures() -> list[Figure]:
    """The median of each question, of which the slowest is bound."""
    spent = {name: _spent(name) for name in _ASKED}
    slowest = max(spent, key=lambda name: spent[name])
    named = ", ".join(f"{name} {s * 1000:.2f}" for name, s in spent.items())
    return [
        Figure(
            f"decision at 8 GPUs and {DEPLOYMENTS} deployments",
            spent[slowest] * 1000,
            "ms",
            bound=Bound(1),
            note=f"the slowest of: {named}",
        )
    ]


class _Asked(NamedTuple):
    """`owners`: how many deployments have a GPU each; the one asked for is the first or the last.

    `strategy`: what must come of it. The figure of a wrong answer is worth nothing.
    """

    gpus: int
    owners: int
    last: bool
    strategy: DecidedStrategy | None


_ASKED = {
    "beside": _Asked(gpus=1, owners=7, last=False, strategy=DecidedStrategy.BLUE_GREEN),
    "after": _Asked(gpus=1, owners=8, last=False, strategy=DecidedStrategy.STOP_THEN_START),
    "refused": _Asked(gpus=8, owners=7, last=True, strategy=None),
}


def _spent(name: str) -> float:
    asked = _ASKED[name]
    number = DEPLOYMENTS - 1 if asked.last else 0
    holdings = [_holding(n, owns=n < asked.owners) for n in range(DEPLOYMENTS)]
    claims = [claim for held in holdings for claim in _claims(held)]
    question = Question(
        demand=Demand(memory_mib=8_000, vcpus=4, gpus=asked.gpus),
        deployment=holdings[number].deployment,
        listen_claims=(f"127.0.0.1:{8443 + number}",),
        own=(holdings[number].enclave,),
    )

    def ask() -> Admission:
        """One decision by itself: nothing is known of the moment from another one."""
        now = ManualClock().now()
        accounts = Accounts(_supply(), holdings=holdings, claims=claims, now=now)
        return decide(question, accounts, history=[30.0] * 50)

    admission = ask()
    decided = admission.decision.strategy if admission.grant else None
    if decided != asked.strategy:
        raise BenchError(f"the question {name} was answered {decided}")
    return median([_once(ask) for _ in range(_TIMES)])


def _once(ask: Callable[[], object]) -> float:
    began = time.thread_time()
    ask()
    return time.thread_time() - began


def _supply() -> HostSupply:
    return HostSupply(
        memory_mib=500_000,
        vcpus=128,
        addresses=tuple(f"10.9.0.{n}" for n in range(2, 60)),
        disk_free_mib=1_000_000,
        boards=(hgx_hopper(),),
    )


def _holding(number: int, *, owns: bool) -> Holding:
    seats = [seat.bdf for seat in hgx_hopper().seats]
    return Holding(
        enclave=EnclaveId(f"enclave{number}"),
        deployment=DeploymentName(f"d{number}"),
        memory_mib=8_000,
        vcpus=4,
        address=f"10.9.0.{2 + number}",
        gpus=(seats[number],) if owns else (),
    )


def _claims(held: Holding) -> list[Claim]:
    number = int(held.deployment[1:])
    listen = f"127.0.0.1:{8443 + number}"
    return [
        Claim(kind=ClaimKind.LISTEN, key=listen, holder=held.deployment),
        *(Claim(kind=ClaimKind.GPU, key=gpu, holder=held.enclave) for gpu in held.gpus),
    ]
