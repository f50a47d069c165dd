"""The composition root's building half: one function a part, joined by constructor arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from agent.attestation.debug_releases import NoDebugEvidence
from agent.attestation.port import Attestation
from agent.attestation.unattested import Unattested
from agent.config import Config, NetworkMode, SupervisorKind, Tee, TrafficMode
from agent.daemon.cage import cage_look_of, caging_of, cgroups_of_ours, refusal_of
from agent.daemon.choices import CannotStartError, Choices, choose
from agent.daemon.egress import facts_of, policy_of
from agent.daemon.egress_names import EgressForesight
from agent.daemon.gpus import gpus_of, preparer_of
from agent.daemon.host_supply import SupplyReader
from agent.daemon.launch_foresight import LaunchForesight
from agent.daemon.launch_formats import LaunchFormats
from agent.daemon.listen_rules import ListenRulesReader
from agent.daemon.networks import (
    guest_sockets,
    network_of,
    outside_of,
    traffic_of,
    watches_of,
)
from agent.daemon.preflight import HostPreflight, host_look
from agent.daemon.recognition import recogniser_of
from agent.enclaves.fleet import Fleet
from agent.enclaves.port import SecureProcessor
from agent.enclaves.quotes import read_quote_service
from agent.enclaves.supervisor import Supervisor
from agent.enclaves.supervisor_detached import DetachedSupervisor
from agent.enclaves.supervisor_systemd import SystemdSupervisor
from agent.host.clock import RealClock
from agent.host.commands import run_command
from agent.host.credentials import CredentialCipher, why_none
from agent.host.network_news import NetworkNews
from agent.host.networks import own_networks
from agent.host.secrets_place import SHARED_MEMORY, secrets_place
from agent.host.threads import finish_in_thread
from agent.host.units import beside_us, host_is_stopping
from agent.inventory.host import HostProbe
from agent.inventory.processor import cpu_model
from agent.model.egress import GuestEgress
from agent.model.ids import HostId
from agent.model.resources import Amounts
from agent.probes.runner import Prober
from agent.releases.measurement import (
    MeasurementCheck,
    SnpMeasurements,
    unmeasured,
)
from agent.releases.store import ReleaseStore, open_releases
from agent.store.port import Store
from agent.traffic.nftables import NftablesTraffic
from agent.updates.engine.dependencies import EngineDependencies, Foresee, foresees_nothing
from agent.updates.engine.engine import EngineRuntime
from agent.updates.engine.preflight import no_preflight
from agent.updates.planner.types import Policy
from agent.updates.secrets.at_rest import AtRest
from agent.updates.secrets.values import SecretValues
from agent.updates.snapshot.snapshot import HostFacts, Resolved

if TYPE_CHECKING:
    from agent.attestation.collateral_cache.service import CollateralService
    from agent.attestation.recogniser import Recogniser
    from agent.attestation.simulated_chain import SimulatedChain


@dataclass(frozen=True, slots=True)
class Assembly:
    """Everything that was built, for `run` to start and close in order."""

    runtime: EngineRuntime
    fleet: Fleet
    releases: ReleaseStore
    collateral: CollateralService | None


def build(
    config: Config, choices: Choices, clock: RealClock, store: Store, host_id: HostId
) -> Assembly:
    """Join the parts. Nothing is started and nothing on the host is touched."""
    releases = open_releases(
        config.releases, state_dir=config.state_dir, firmware_dir=config.qemu.firmware_dir
    )
    news = NetworkNews()
    network = network_of(config, choices, news)
    traffic = traffic_of(config, choices, network)
    sockets = guest_sockets(config, choices)
    prober = Prober(config.probes, clock, sockets)
    outside = outside_of(config, choices, clock, news)
    units = choices.supervisor.value == SupervisorKind.SYSTEMD
    gpus = gpus_of(config, clock, store, prober, in_units=units)
    tee = Tee(choices.tee.value)
    chain = _simulated_chain(config, clock) if tee is Tee.SIMULATED else None
    measurements = SnpMeasurements() if tee in (Tee.SIMULATED, Tee.SEV_SNP) else None
    enclaves = Fleet(
        run_dir=config.run_dir,
        state_dir=config.state_dir,
        binary=config.qemu.binary,
        user=config.qemu.user,
        accel=config.accel,
        network=network,
        supervisor=supervisor_of(config, choices),
        tee=tee,
        check_launch=measurements.check_launch if measurements else None,
        processor=_simulated_processor(chain) if chain else None,
        device_of=lambda bdf: gpus.inventory.gpu(bdf) if gpus.inventory else None,
        quotes=read_quote_service(config.qemu.quote_service),
        tdx_firmware=config.qemu.tdx_firmware,
        cpu_model=cpu_model(),
        caging=caging_of(choices),
    )
    collateral = collateral_of(config, tee, clock)
    probe = HostProbe(
        config.state_dir, cgroup_root=config.host.cgroup_root, vcpus=config.host.vcpus
    )
    confidential = tee in (Tee.SEV_SNP, Tee.TDX)
    preflight = (
        HostPreflight(
            tee,
            config,
            enclaves.qemu,
            gpus,
            host_look(config),
            in_units=units,
            cage=cage_look_of(config, choices),
        )
        if confidential
        else None
    )
    measured = _measured(config, tee, measurements)
    sizes = config.host.gpu_group_sizes
    parts = EngineDependencies(
        store=store,
        clock=clock,
        releases=releases,
        enclaves=enclaves,
        probes=prober,
        traffic=traffic,
        attestation=_attestation(
            config,
            choices,
            clock,
            chain,
            collateral,
            recogniser=lambda: recogniser_of(
                config, tee, store, clock, host_id, chain=chain, in_units=units
            ),
        ),
        secret_values=SecretValues(
            secrets_dir(config),
            config.state_dir / "secret-digest.key",
            at_rest_of(config, in_units=units),
        ),
        gpus=gpus,
        preparation=preparer_of(
            config, clock, store, gpus, confidential=confidential, in_units=units
        ),
        supply=SupplyReader(
            probe,
            config.reserve,
            enclaves,
            store,
            gpus,
            group_sizes=None if isinstance(sizes, str) else sizes,
            tee=tee,
            listen_rules=ListenRulesReader(config, choices.network.value),
            listeners_by_name=choices.traffic.value == TrafficMode.HAPROXY,
            default_domain=config.releases.default_domain,
            allow_unattested=config.allow_unattested,
        ),
        policy=policy(config, choices.tee.value),
        host_id=host_id,
        measured=measured,
        preflight=preflight or no_preflight,
        launchable=LaunchFormats(tee, enclaves.qemu, gpus, uncaged=refusal_of(choices)),
        foresee=foresee_of(config, choices),
        foresee_launch=LaunchForesight(
            tee,
            config,
            local=releases.local,
            firmware=releases.firmware,
            measured=measured,
            preflight=preflight,
        ),
        host_stopping=host_is_stopping,
        image_age_s=config.releases.cache_max_age_days * 86400,
        network_news=news,
        outside=outside,
        watches=(*watches_of(config, traffic, news), outside.run),
    )
    facts = _host_facts(config, choices, clock, host_id)
    return Assembly(
        runtime=EngineRuntime(parts, facts),
        fleet=enclaves,
        releases=releases,
        collateral=collateral,
    )


def _measured(config: Config, tee: Tee, measurements: SnpMeasurements | None) -> MeasurementCheck:
    if measurements is not None:
        return measurements.check_image
    if tee is not Tee.TDX:
        return unmeasured
    from agent.releases.tdx_measurement import TdxMeasurements

    return TdxMeasurements(config.attestation.tdx.platforms).check_image


async def make_simulated_chain(config: Config, clock: RealClock) -> None:
    """Have the certificates of `tee: simulated` there before anything needs them: the first time
    it takes seconds. Raises SimulatedChainError, StorageError.
    """
    await finish_in_thread(_simulated_chain, config, clock)


def _simulated_chain(config: Config, clock: RealClock) -> SimulatedChain:
    """Imported only where it is used: other hosts have no need of it in their memory."""
    from agent.attestation.simulated_chain import open_chain

    return open_chain(config.state_dir / "simulated-processor.pem", clock.now().wall)


def _simulated_processor(chain: SimulatedChain) -> SecureProcessor:
    from agent.attestation.simulated_processor import SimulatedProcessor
    from agent.releases.launch_digest import snp_launch_digest

    return SimulatedProcessor(chain, snp_launch_digest)


def collateral_of(config: Config, tee: Tee, clock: RealClock) -> CollateralService | None:
    """The vendors' collateral, where there is a vendor: none knows a simulated processor."""
    if tee not in (Tee.SEV_SNP, Tee.TDX):
        return None
    from agent.attestation.collateral_cache.service import open_collateral

    return open_collateral(config.attestation, state_dir=config.state_dir, clock=clock)


def _attestation(
    config: Config,
    choices: Choices,
    clock: RealClock,
    chain: SimulatedChain | None,
    collateral: CollateralService | None,
    *,
    recogniser: Callable[[], Recogniser],
) -> Attestation:
    """Imported only where it is used: what verifies is large."""
    if choices.tee.value == Tee.NONE:
        return Unattested()
    from agent.attestation.opening import open_verifier

    root = chain.root_spki_sha256 if chain else None
    endorser = collateral.endorser if collateral else None
    verifier = open_verifier(
        config.attestation,
        clock,
        endorser=endorser,
        lists=endorser,
        recogniser=recogniser(),
        simulated_root=root,
        sockets=guest_sockets(config, choices),
    )
    return NoDebugEvidence(verifier, demanded=not config.allow_unattested)


def secrets_dir(config: Config, shared_memory: Path = SHARED_MEMORY) -> Path:
    """Where secrets' values lie. Raises CannotStartError where there is no such place."""
    place = secrets_place(config.run_dir, config.state_dir, shared_memory)
    if place is not None:
        return place
    raise CannotStartError("run_dir", "must be on a tmpfs: secrets may touch no disk")


def at_rest_of(config: Config, *, in_units: bool) -> AtRest:
    """Where secrets' values are kept for after a reboot, if they are to be."""
    directory = config.state_dir / "secrets-at-rest"
    if config.secrets.at_rest != "systemd_creds":
        return AtRest(directory)
    run = beside_us() if in_units else run_command
    return AtRest(directory, CredentialCipher(run), why_none)


def policy(config: Config, tee: str) -> Policy:
    """The configured times, on a host of this TEE."""
    update, probes = config.update, config.probes
    deadline = update.boot_deadline_s
    rounds_s = (probes.failure_threshold + 1) * (probes.interval_s + probes.timeout_s)
    return Policy(
        dwell_s=update.dwell_s,
        soak_s=update.soak_s,
        drain_s=update.drain_s,
        boot_deadline_s=None if isinstance(deadline, str) else deadline,
        stop_grace_s=update.stop_grace_s,
        probe_slack_s=rounds_s,
        failing_for_s=probes.failure_threshold * probes.interval_s,
        pull_allowance_s=update.pull_allowance_s,
        outside_patience_s=rounds_s,
        relaunch_unhealthy_after_s=config.relaunch_unhealthy_after_s,
        reverify_s=None if tee == Tee.NONE else config.attestation.interval_s,
        drop_on_loss=config.attestation.on_loss == "drop_traffic",
    )


def foresee_of(config: Config, choices: Choices) -> Foresee:
    """What is told ahead of names that guests will not reach."""
    policy = policy_of(config, choices)
    if choices.network.value == NetworkMode.USER and policy.mode is GuestEgress.ANY:
        return foresees_nothing  # nothing is held there, not even metadata addresses
    return EgressForesight(policy, lambda: own_networks(config.network.bridge)).warnings


def supervisor_of(config: Config, choices: Choices) -> Supervisor:
    """Who keeps the VMs' processes, as was chosen."""
    if choices.supervisor.value == SupervisorKind.SYSTEMD:
        return SystemdSupervisor(config.update.stop_grace_s)
    caged = caging_of(choices) is not None
    return DetachedSupervisor(cgroups=cgroups_of_ours()[0] if caged else None)


async def restore_host(config: Config) -> None:
    """Take back what the agent made on the host: data plane, sysctls, links. No VM may run.

    Raises TrafficError or NetworkError; what was restored before it stays so.
    """
    choices = await choose(config)
    network = network_of(config, choices)
    traffic = traffic_of(config, choices, network)
    if isinstance(traffic, NftablesTraffic):
        await traffic.restore()
    else:
        await traffic.shutdown()
    await network.restore()


def _host_facts(config: Config, choices: Choices, clock: RealClock, host_id: HostId) -> HostFacts:
    return HostFacts(
        id=host_id,
        agent_version=version("enclave-agent"),
        tee=choices.tee,
        accel=Resolved(value="unknown", reason="being proven"),
        supervisor=choices.supervisor,
        network=choices.network,
        traffic=choices.traffic,
        cage=choices.cage,
        egress=facts_of(config, choices),
        started_at=clock.now(),
        draining=False,
        inventory_complete=False,
        simulated=choices.tee.value == Tee.SIMULATED,
        free=Amounts(),
        total=Amounts(),
    )
