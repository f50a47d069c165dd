"""The executor: does what the planner asked for, through the ports, and says how it ended.

Every action is idempotent: done again after a crash it finds its work done, or finishes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import assert_never

from agent.attestation.port import Attestation, Check, Evidence, NotYetError, Verdict
from agent.enclaves.port import EnclaveError, Enclaves, LaunchOrder, ServesBooted, VmPhase
from agent.errors import AgentError, describe
from agent.model.clock import Instant
from agent.model.enclave import Enclave, Endpoint
from agent.model.ids import DeploymentName, EnclaveId, HostId
from agent.model.power_button import Press
from agent.model.release import LocalImage, Release
from agent.model.resources import GUEST_HTTPS_PORT
from agent.model.revision import Deployment, Fault, Revision
from agent.releases.measurement import MeasurementCheck
from agent.releases.port import ReleaseError, Releases, ReleaseSourceError
from agent.store.port import Reader, Store
from agent.traffic.port import Binding, RouteOrder, Traffic, TrafficError
from agent.updates.admission.gpus import Preparation
from agent.updates.admission.power_button import is_deaf, learn, read_buttons
from agent.updates.engine.preflight import Preflight, no_preflight
from agent.updates.planner.attestation import disputed, judged_anew
from agent.updates.planner.types import Action, ActionKind, Judged, Outcome
from agent.updates.planner.upkeep import SECRETS_MISSING
from agent.updates.secrets.versions import Secrets

log = logging.getLogger(__name__)


class UnknownEnclaveError(AgentError):
    """An action names an enclave that has no row any more: it was overtaken."""

    @property
    def code(self) -> str:
        return "overtaken"


class SecretsMissingError(AgentError):
    """Values of secrets are not on this host (it was rebooted, say). Names only."""

    @property
    def code(self) -> str:
        return SECRETS_MISSING


async def _never_known(_: Endpoint) -> bool:
    """Of a guest that nobody asks whether it has booted."""
    return False


class Executor:
    """Performs actions. Remembers only the verdicts that it was given and the routes applied."""

    def __init__(
        self,
        *,
        store: Store,
        releases: Releases,
        enclaves: Enclaves,
        traffic: Traffic,
        attestation: Attestation,
        secrets: Secrets,
        preparation: Preparation,
        host_id: HostId,
        spki_of: Callable[[EnclaveId], str | None],
        now: Callable[[], Instant],
        measured: MeasurementCheck,
        keeps_route: Callable[[Deployment], bool],
        restart_old: Callable[[DeploymentName], Awaitable[None]],
        serves_booted: Callable[[Endpoint], Awaitable[bool]] = _never_known,
        preflight: Preflight = no_preflight,
    ) -> None:
        self._store = store
        self._releases = releases
        self._enclaves = enclaves
        self._traffic = traffic
        self._attestation = attestation
        self._secrets = secrets
        self._preparation = preparation
        self._host_id = host_id
        self._spki_of = spki_of
        self._now = now
        self._measured = measured
        self._keeps_route = keeps_route  # whether the data plane is to stay as it is
        self._preflight = preflight
        self._restart_old = restart_old
        self._serves_booted = serves_booted
        self.applied: dict[DeploymentName, int] = {}
        self.not_taken: dict[DeploymentName, str] = {}  # why the data plane refused a route last
        self.verdicts: dict[EnclaveId, Judged] = {}
        self.judge_again_at: Instant | None = None

    async def perform(self, name: DeploymentName, action: Action) -> Outcome:
        """Do one action. An error of ours becomes a fault; only cancellation gets out."""
        try:
            return await self._perform(name, action)
        except EnclaveError as error:
            log.warning("action failed", extra=_fields(name, action, error))
            return Outcome(fault=_fault(error, error.console_tail))
        except AgentError as error:
            log.warning("action failed", extra=_fields(name, action, error))
            return Outcome(fault=_fault(error))
        except Exception as error:  # a defect of ours must end as a failed update, visibly
            log.exception("action crashed", extra=_fields(name, action, error))
            return Outcome(fault=Fault(code="internal", detail=describe(error)))

    async def _perform(self, name: DeploymentName, action: Action) -> Outcome:
        match action.kind:
            case ActionKind.PREPARE:
                await self._prepare(action)
            case ActionKind.LAUNCH:
                await self._launch(action)
            case ActionKind.FINISH:
                row, revision = await self._rows(action)
                asking = self._booted(row, revision)
                press = await self._enclaves.finish(row, action.grace_s, asking)
                await self._learn(row, press)
            case ActionKind.STOP:
                await self._stop(action)
            case ActionKind.REQUALIFY:
                row, _ = await self._rows(action)
                await self._ready_gpus(row)
            case ActionKind.VERIFY:
                await self._verify(action)
            case ActionKind.APPLY_ROUTE:
                await self.apply_route(name)
            case ActionKind.RESET:
                return await self._reset(action)
            case ActionKind.FORGET_DEPLOYMENT:
                await self._traffic.remove(name)
                self.applied.pop(name, None)
                self.not_taken.pop(name, None)
                self._secrets.forget(name)
            case ActionKind.RESTART_OLD:
                await self._restart_old(name)
            case _:
                assert_never(action.kind)
        return Outcome()

    async def _rows(self, action: Action) -> tuple[Enclave, Revision]:
        assert action.enclave is not None
        return await self._recorded(action.enclave)

    async def _recorded(self, enclave_id: EnclaveId) -> tuple[Enclave, Revision]:
        def read(tx: Reader) -> tuple[Enclave, Revision] | None:
            row = tx.enclave(enclave_id)
            revision = tx.revision(row.deployment, row.revision) if row else None
            return (row, revision) if row and revision else None

        found = await self._store.read(read)
        if found is None:
            raise UnknownEnclaveError(f"enclave {enclave_id} is not recorded")
        return found

    async def _prepare(self, action: Action) -> None:
        row, revision = await self._rows(action)
        release, image = await self._image(revision)
        await self._require_secrets(revision)
        await self._measured(release, image, row.vcpus)
        await self._preflight(row, image, prepared=False)
        if row.replaces is None:
            await self._ready_gpus(row)
        else:  # some are the old enclave's until it is stopped
            await self._preparation.examine((*row.gpus, *row.switches))

    async def _ready_gpus(self, row: Enclave) -> None:
        devices = (*row.gpus, *row.switches)
        if devices:
            await self._preparation.make_ready(row.id, devices, row.gpu_mode)

    async def _image(self, revision: Revision) -> tuple[Release, LocalImage]:
        release = await self._releases.resolve(
            revision.repo, revision.tag, revision.release_digest
        )
        image = self._releases.local(release)
        return release, image or await self._releases.fetch(release)

    async def _require_secrets(self, revision: Revision) -> dict[str, str]:
        values = await self._secrets.fetch(revision)
        missing = sorted(revision.awaited_secrets.keys() - values.keys())
        if missing:
            raise SecretsMissingError(f"supply again: {', '.join(missing)}")
        return values

    async def _launch(self, action: Action) -> None:
        row, revision = await self._rows(action)
        if row.launch_uuid != action.key:
            raise UnknownEnclaveError(f"enclave {row.id} was launched anew")
        release, image = await self._image(revision)
        order = LaunchOrder(
            revision=revision,
            release=release,
            image=image,
            secrets=await self._require_secrets(revision),
            host_id=self._host_id,
            deaf=await self._is_deaf(revision),
        )
        if self._enclaves.view(row.id).phase is VmPhase.ABSENT:  # a relaunch finds them dirty
            await self._ready_gpus(row)
            await self._preflight(row, image, prepared=True)
        try:
            await self._enclaves.launch(row, order)
        finally:
            await self._keep_from_stuck(row)

    async def _stop(self, action: Action) -> None:
        row, revision = await self._rows(action)
        try:
            press = await self._enclaves.stop(row, action.grace_s, self._booted(row, revision))
        finally:
            await self._keep_from_stuck(row)
        await self._learn(row, press)

    def _booted(self, row: Enclave, revision: Revision) -> ServesBooted:
        """Asks the guest whether it has booted."""

        def serves_booted() -> Awaitable[bool]:
            endpoint = self._enclaves.endpoint(row, revision, GUEST_HTTPS_PORT)
            return self._serves_booted(endpoint)

        return serves_booted

    async def _learn(self, row: Enclave, press: Press) -> None:
        """Remember of its image whether it hears its power button."""
        if press in (Press.HEARD, Press.IGNORED):
            try:
                await self._store.transact(lambda tx: learn(tx, row, press, self._now()))
            except AgentError as error:  # it is learned by another stop
                told = {"enclave": row.id, "error": describe(error)}
                log.warning("press not remembered", extra=told)

    async def _is_deaf(self, revision: Revision) -> bool:
        now = self._now().wall
        return await self._store.read(
            lambda tx: is_deaf(revision, read_buttons(tx, [revision]), now)
        )

    async def _keep_from_stuck(self, row: Enclave) -> None:
        """A process that the kernel keeps has its devices: nobody else may be given them."""
        devices = (*row.gpus, *row.switches)
        if devices and self._enclaves.view(row.id).phase is VmPhase.STUCK:
            reason = f"QEMU of enclave {row.id} was killed and does not end"
            await self._preparation.set_aside(devices, reason)

    async def _verify(self, action: Action) -> None:
        row, revision = await self._rows(action)
        spki = self._spki_of(row.id)
        key = f"{row.launch_uuid}/{spki}"
        if spki is None or key != action.key:
            return
        verdict = await self._judged(row, revision, spki)
        known, at = self.verdicts.get(row.id), self._now()
        judged = judged_anew(known, key, verdict, at)
        if judged is None:
            return
        if known is not None and _another_firmware(known.verdict, verdict):
            self.judge_again_at = judged.at
        self.verdicts[row.id] = judged
        for other in verdict.disputed:
            if (held := self.verdicts.get(other)) is not None:
                self.verdicts[other] = disputed(held, row.id, at)

    def judge_again(self) -> None:
        """Have all evidence judged anew at once: what it was held against is another thing now."""
        self.judge_again_at = self._now()

    async def _judged(self, row: Enclave, revision: Revision, spki: str) -> Verdict:
        """What cannot be held against its release for now is no verdict yet."""
        try:
            release = await self._releases.resolve(
                revision.repo, revision.tag, revision.release_digest
            )
        except (ReleaseError, ReleaseSourceError) as error:
            check = Check(code=error.code, passed=False, detail=describe(error))
            return Verdict(attested=None, retry=True, checks=(check,))
        endpoint = self._enclaves.endpoint(row, revision, GUEST_HTTPS_PORT)
        return await self._attestation.verify(row, release, endpoint, spki)

    async def evidence(self, enclave_id: EnclaveId, nonce: bytes | None) -> Evidence:
        """What an enclave answers to this nonce, or answered last to one of ours.

        Held against the key that is bound, or the newest one while there is none.

        Raises UnknownEnclaveError, NotYetError, NothingClaimedError, ReleaseError.
        """
        row, revision = await self._recorded(enclave_id)
        spki = row.spki_sha256 or self._spki_of(row.id)
        if spki is None:
            raise NotYetError(f"enclave {row.id} has shown no TLS key yet")
        release = await self._releases.resolve(
            revision.repo, revision.tag, revision.release_digest
        )
        endpoint = self._enclaves.endpoint(row, revision, GUEST_HTTPS_PORT)
        return await self._attestation.evidence(row, release, endpoint, spki, nonce)

    async def apply_route(self, name: DeploymentName) -> None:
        """Bring the data plane to the recorded route of one deployment, unless it is held."""
        deployment, order = await self._store.read(
            lambda tx: (tx.deployment(name), self.order(tx, name))
        )
        if deployment is None or order is None:
            return
        if not self._keeps_route(deployment):
            try:
                await self._traffic.apply(order)
            except TrafficError as error:
                self.not_taken[name] = describe(error)
                raise
        self.not_taken.pop(name, None)
        self.applied[name] = order.generation

    def order(self, tx: Reader, name: DeploymentName) -> RouteOrder | None:
        """The recorded route as the data plane takes it."""
        deployment = tx.deployment(name)
        if deployment is None:
            return None
        target = tx.enclave(deployment.route.enclave) if deployment.route.enclave else None
        revision = tx.revision(name, _listening_revision(deployment, target))
        if revision is None:
            return None
        bindings = tuple(
            Binding(
                listen=listener.listen,
                endpoints=(self._enclaves.endpoint(target, revision, listener.guest_port),)
                if target
                else (),
            )
            for listener in revision.listeners
        )
        return RouteOrder(
            deployment=name,
            generation=deployment.route.generation,
            bindings=bindings,
            domain=revision.domain,
        )

    async def _reset(self, action: Action) -> Outcome:
        """Of every listener, also after one where it failed."""
        row, revision = await self._rows(action)
        count, fault = 0, None
        for listener in revision.listeners:
            endpoint = self._enclaves.endpoint(row, revision, listener.guest_port)
            try:
                count += await self._traffic.reset(endpoint)
            except AgentError as error:
                log.warning("reset failed", extra=_fields(row.deployment, action, error))
                fault = _fault(error)
        return Outcome(fault=fault, count=count)

    async def connections(self, row: Enclave, revision: Revision) -> int:
        """Connections open to an enclave through the data plane; counted at once, by one look."""
        ports = [listener.guest_port for listener in revision.listeners]
        endpoints = [self._enclaves.endpoint(row, revision, port) for port in ports]
        return sum(await asyncio.gather(*map(self._traffic.connections, endpoints)))


def _listening_revision(deployment: Deployment, target: Enclave | None) -> int:
    """Whose listeners are held: the target's, else of what served last, else of the newest."""
    if target is not None:
        return target.revision
    return deployment.active_revision or deployment.last_revision


def _another_firmware(before: Verdict, now: Verdict) -> bool:
    """Of one enclave: the processors of a host need not have the same."""
    known = before.firmware is not None and now.firmware is not None
    return known and before.firmware != now.firmware


def _fault(error: AgentError, console_tail: str | None = None) -> Fault:
    return Fault(code=error.code, detail=describe(error), console_tail=console_tail)


def _fields(name: DeploymentName, action: Action, error: Exception) -> dict[str, str]:
    return {
        "deployment": name,
        "action": str(action.kind),
        "enclave": action.enclave or "",
        "error": describe(error),
    }
