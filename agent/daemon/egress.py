"""What `network.guest_egress` became on this host, whether it can be held, and what it refuses.

`auto` is `internet`, but on an installation that had deployments before there was a policy: those
may live off networks that it closes, so they keep all of them until somebody says what they need.
That an installation is past this is a file of its own, apart from the store: a store that is
damaged, or restored from before, must neither open nor close anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.config import Config, NetworkMode, TrafficMode
from agent.daemon.choices import CannotStartError, Choices
from agent.host.files import StorageError, write_atomic
from agent.host.restart_on_error import restart_on_error
from agent.model.egress import EgressFacts, EgressPolicy, GuestEgress, Refusal, parse_allowed
from agent.store.port import Store, StoreDamagedError
from agent.traffic.nftables import NftablesTraffic
from agent.traffic.port import Traffic
from agent.updates.snapshot.publisher import SnapshotPublisher
from agent.updates.snapshot.snapshot import Resolved

_FIELD = "network.guest_egress"
_PAST_ANY = "guest-egress-is-closed"
_SAYS = b"network.guest_egress: auto is internet on this installation\n"
_PROBLEM, _LAUNCHED_BEFORE = "guest-egress", "guest-egress/launched-before"
_LOOK_EVERY_S = 10.0
_UNHELD = (
    "QEMU opens the connections of guests on a user-mode network as the host's own: they reach "
    "whatever this host reaches, its loopback and metadata addresses too"
)


async def settle_egress(config: Config, choices: Choices, store: Store) -> Choices:
    """The choices with the policy among them. Raises CannotStartError, StorageError."""
    found = await _auto(config, store)
    policy = config.network.guest_egress
    if choices.network.value == NetworkMode.USER:
        return _with(choices, _on_user_network(config, choices.network.reason))
    if config.network.hairpin and choices.traffic.value != TrafficMode.NFTABLES:
        raise CannotStartError(
            "network.hairpin",
            f"guests on taps reach listeners of their host through nftables alone, and the data "
            f"plane is {choices.traffic.value} ({choices.traffic.reason})",
        )
    if policy is not GuestEgress.AUTO:
        return _with(choices, Resolved(value=policy, reason="configured"))
    if found is GuestEgress.ANY:
        reason = f"deployments were here before there was a policy, and {_FIELD} is not set"
        return _with(choices, Resolved(value=GuestEgress.ANY, reason=reason))
    reason = "private networks and the host's own are closed by default"
    return _with(choices, Resolved(value=GuestEgress.INTERNET, reason=reason))


def policy_of(config: Config, choices: Choices) -> EgressPolicy:
    """As it is to be enforced."""
    return EgressPolicy(
        mode=GuestEgress(choices.egress.value),
        allow=tuple(map(parse_allowed, config.network.guest_egress_allow)),
    )


def facts_of(config: Config, choices: Choices) -> EgressFacts:
    """For readers, before anything was refused."""
    policy = policy_of(config, choices)
    counted = choices.traffic.value == TrafficMode.NFTABLES
    return EgressFacts(
        mode=policy.mode,
        why=choices.egress.reason,
        allow=tuple(map(str, policy.allow)),
        refused=() if counted else None,
    )


def _with(choices: Choices, egress: Resolved) -> Choices:
    return msgspec.structs.replace(choices, egress=egress)


def _on_user_network(config: Config, why_user: str) -> Resolved:
    """All or nothing: what a connection is for is not seen there. Raises CannotStartError."""
    network = config.network
    if network.guest_egress is GuestEgress.INTERNET:
        raise CannotStartError(
            _FIELD,
            f"internet cannot be held on a user-mode network ({why_user}): use network.mode: tap, "
            "or say none (nothing is reached) or any (whatever this host reaches)",
        )
    if network.guest_egress is GuestEgress.NONE:
        if network.guest_egress_allow:
            raise CannotStartError(
                "network.guest_egress_allow",
                f"on a user-mode network ({why_user}) none has no exceptions: use taps, or any",
            )
        if network.hairpin:
            raise CannotStartError(
                "network.hairpin", f"cannot be had with {_FIELD}: none on a user-mode network"
            )
        reason = "configured; QEMU opens no connection for guests, to ports of this host neither"
        return Resolved(value=GuestEgress.NONE, reason=reason)
    configured = "configured; " if network.guest_egress is GuestEgress.ANY else ""
    return Resolved(value=GuestEgress.ANY, reason=f"{configured}{_UNHELD}")


async def _auto(config: Config, store: Store) -> GuestEgress:
    """`internet` or `any`; a file says for ever that it is not `any` here.

    Raises StorageError where a later start would decide otherwise without that file.
    """
    path = config.state_dir / _PAST_ANY
    if path.exists():
        return GuestEgress.INTERNET
    if config.network.guest_egress is not GuestEgress.AUTO:
        with contextlib.suppress(StorageError):  # noted at the next start, then
            write_atomic(path, _SAYS)
        return GuestEgress.INTERNET
    try:
        before = await store.read(lambda tx: bool(tx.deployments()))
    except StoreDamagedError:
        return GuestEgress.ANY  # nothing is touched that may run
    if before:
        return GuestEgress.ANY
    write_atomic(path, _SAYS)
    return GuestEgress.INTERNET


@dataclass(frozen=True, slots=True)
class EgressReporter:
    """Tells readers of the policy, of what it refused, and of what it does not hold."""

    config: Config
    choices: Choices
    publisher: SnapshotPublisher
    traffic: Traffic

    def begin(self) -> None:
        """Say what is in force, and what about it a person should change."""
        self._show(None)
        network = self.config.network
        mode = self.choices.egress.value
        if network.guest_egress is not GuestEgress.AUTO or mode != GuestEgress.ANY:
            return
        user = self.choices.network.value == NetworkMode.USER
        mend = (
            "use taps (network.mode: tap, as root), or say none or any in network.guest_egress"
            if user
            else f"set {_FIELD}: internet, with what guests need of private networks in "
            "network.guest_egress_allow; or any, to keep it so"
        )
        self.publisher.raise_problem(
            _PROBLEM,
            code="guest_egress_unheld" if user else "guest_egress_unset",
            severity="warning",
            detail=f"guests may reach every network: {self.choices.egress.reason}",
            mend=mend,
        )

    async def run(self) -> None:
        """For ever, where there is something to be seen."""
        traffic = self.traffic
        if isinstance(traffic, NftablesTraffic):
            await restart_on_error(
                "watch over guests' egress", lambda: traffic.egress.watch(self._show)
            )
        while self.choices.network.value == NetworkMode.USER:
            self._tell_of_earlier_launches()
            await asyncio.sleep(_LOOK_EVERY_S)

    def _show(self, refused: tuple[Refusal, ...] | None) -> None:
        facts = facts_of(self.config, self.choices)
        if refused is not None:
            facts = msgspec.structs.replace(facts, refused=refused)
        self.publisher.show_host(egress=facts)

    def _tell_of_earlier_launches(self) -> None:
        """QEMU's network is what it was launched with, whatever the policy is now."""
        restricted = self.choices.egress.value == GuestEgress.NONE
        found = sorted(
            f"{name} ({one.row.id})"
            for name, facts in self.publisher.snapshot.deployments.items()
            for one in facts.enclaves
            if one.vm.process is not None and is_restricted(one.vm.process.pid) is (not restricted)
        )
        if not found:
            self.publisher.clear_problem(_LAUNCHED_BEFORE)
            return
        state = "every network" if restricted else "no network"
        self.publisher.raise_problem(
            _LAUNCHED_BEFORE,
            code="guest_egress_unheld",
            severity="warning",
            detail=f"launched under another {_FIELD}, still reach {state}: {', '.join(found)}",
            mend="enclave-agent relaunch NAME for each of them",
        )


def is_restricted(pid: int) -> bool | None:
    """Whether this QEMU opens no connections for its guest; None for one that is gone."""
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    return any(b'"restrict":true' in word.replace(b" ", b"") for word in argv) if argv[0] else None
