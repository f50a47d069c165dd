"""How a request is judged: who holds what at that moment, and what the deployment's past says."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from agent.capacity.accounts import Accounts
from agent.capacity.decision import decide
from agent.capacity.supply import Admission, Holding, HostSupply, Question, charged
from agent.model.clock import Instant
from agent.model.ids import DeploymentName, EnclaveId, LeaseId
from agent.model.reasons import Reason
from agent.model.resources import Demand
from agent.model.revision import Revision
from agent.probes.choice import unasked
from agent.store.port import Reader
from agent.updates.admission.certificates import boots_of, certificate_name, told
from agent.updates.admission.downtimes import read_downtimes
from agent.updates.admission.gpus import recorded
from agent.updates.admission.power_button import (
    is_deaf,
    read_buttons,
    running_revisions,
    unclean_stop,
)
from agent.updates.admission.rows import Options
from agent.updates.planner.downtimes import Promise, promised


def holdings(tx: Reader) -> list[Holding]:
    """Every enclave's allocation, as the ledger sees it."""
    found = []
    for row in tx.enclaves():
        revision = tx.revision(row.deployment, row.revision)
        demand = revision.demand if revision else None
        bare = Demand(memory_mib=row.memory_mib, vcpus=row.vcpus)
        found.append(Holding.of(row, demand or bare))
    return found


class Standing(NamedTuple):
    """How a deployment stands that asks: its enclaves, the oldest first, and whether
    an update of it runs.
    """

    name: DeploymentName
    own: tuple[EnclaveId, ...]
    running_update: bool

    @classmethod
    def read(cls, tx: Reader, name: DeploymentName) -> Standing:
        """Of this transaction."""
        own = tuple(row.id for row in tx.enclaves(name))
        return cls(name, own, tx.running_update(name) is not None)

    def question(self, revision: Revision, options: Options) -> Question:
        """What admission asks the capacity room."""
        told = unasked(revision)
        return Question(
            demand=revision.demand,
            deployment=self.name,
            listen_claims=revision.listen_claims,
            own=self.own,
            running_update=self.running_update,
            insisted=options.strategy,
            staging=options.staging,
            lease=LeaseId(options.lease) if options.lease else None,
            obstacles=options.obstacles,
            warnings=(*options.warnings, *((told,) if told else ())),
            public_certificate=revision.public_certificate,
            guest_domain=revision.own_guest_domain,
            dummy_attestation=revision.dummy_attestation,
            debug=revision.debug,
        )


def question(tx: Reader, name: DeploymentName, revision: Revision, options: Options) -> Question:
    """What admission asks the capacity room for this deployment."""
    return Standing.read(tx, name).question(revision, options)


class Ledger:
    """All that is recorded of who has what, with what the host has at this moment.

    What it read once of a deployment it keeps: many questions are asked of one moment.
    """

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self._promises: dict[DeploymentName | None, tuple[Promise, Reason | None]] = {}
        self._boots: dict[str | None, tuple[float, ...]] = {}

    @classmethod
    def read(cls, tx: Reader, supply: HostSupply, now: Instant) -> Ledger:
        """Of this transaction."""
        accounts = Accounts(
            recorded(tx, supply),
            holdings=holdings(tx),
            claims=tx.claims(),
            leases=tx.leases(),
            now=now,
        )
        return cls(accounts)

    def judge(self, tx: Reader, asked: Question) -> Admission:
        """The decision; `tx` is the transaction that this was read in, or one soon after it."""
        accounts, name = self.accounts, asked.deployment
        if name not in self._promises:
            self._promises[name] = self._promise(tx, name)
        promise, warning = self._promises[name]
        domain = certificate_name(asked, accounts.supply)
        if domain not in self._boots:
            self._boots[domain] = boots_of(tx, domain)
        found = decide(
            msgspec.structs.replace(asked, demand=charged(asked.demand, accounts.supply)),
            accounts,
            history=promise.history,
            stop=promise.stop,
        )
        decision = told(found.decision, domain, self._boots[domain], accounts.now)
        admission = msgspec.structs.replace(found, decision=decision)
        return admission if warning is None else _warned(admission, warning)

    def _promise(self, tx: Reader, name: DeploymentName | None) -> tuple[Promise, Reason | None]:
        """What its next downtime will be, and what is to be known of the stop before it."""
        running = running_revisions(tx, name) if name else []
        grace_s, now = self.accounts.supply.stop_grace_s, self.accounts.now.wall
        if name is None or not running:
            return promised(read_downtimes(tx, name, None), grace_s, deaf=False), None
        deaf = is_deaf(running[0], read_buttons(tx, running), now)
        found = read_downtimes(tx, name, running[0].image_version)
        return promised(found, grace_s, deaf=deaf), unclean_stop(tx, name, now)


def _warned(admission: Admission, warning: Reason) -> Admission:
    """An admitted one with what is to be known before; a refusal has reasons enough."""
    if admission.grant is None:
        return admission
    decision = admission.decision
    return msgspec.structs.replace(
        admission,
        decision=msgspec.structs.replace(decision, reasons=(*decision.reasons, warning)),
    )


def judge(tx: Reader, asked: Question, supply: HostSupply, now: Instant) -> Admission:
    """The decision on what is recorded at this moment."""
    return Ledger.read(tx, supply, now).judge(tx, asked)
