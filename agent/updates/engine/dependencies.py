"""What the engine is joined of, each by its port."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from agent.attestation.port import Attestation
from agent.capacity.supply import HostSupply
from agent.enclaves.port import Enclaves
from agent.host.clock import Clock
from agent.host.network_news import NetworkNews
from agent.host.suspension import Suspensions
from agent.inventory.port import Gpus
from agent.model.ids import HostId
from agent.model.release import Release
from agent.probes.port import NobodyOutside, Outside, Probes
from agent.releases.measurement import MeasurementCheck, unmeasured
from agent.releases.port import Releases
from agent.store.port import Store
from agent.traffic.port import Traffic
from agent.updates.admission.gpus import NoPreparation, Preparation
from agent.updates.admission.launchable import Launchable, any_launch
from agent.updates.engine.host_shutdown import AskHost, stays_up
from agent.updates.engine.preflight import ForeseeLaunch, Preflight, any_host, no_preflight
from agent.updates.planner.types import Policy
from agent.updates.secrets.values import SecretValues

# Sentences about a release that stand in no update's way: what its guests will not reach, say.
Foresee = Callable[[Release], Awaitable[tuple[str, ...]]]


async def foresees_nothing(release: Release) -> tuple[str, ...]:
    """Where nothing is known ahead."""
    return ()


@dataclass(frozen=True, slots=True)
class EngineDependencies:
    """What the composition root joins."""

    store: Store
    clock: Clock
    releases: Releases
    enclaves: Enclaves
    probes: Probes
    traffic: Traffic
    attestation: Attestation
    secret_values: SecretValues
    gpus: Gpus
    supply: Callable[[], Awaitable[HostSupply]]
    policy: Policy
    host_id: HostId
    preparation: Preparation = field(default_factory=NoPreparation)
    measured: MeasurementCheck = unmeasured
    preflight: Preflight = no_preflight
    launchable: Launchable = any_launch
    foresee: Foresee = foresees_nothing
    foresee_launch: ForeseeLaunch = any_host
    host_stopping: AskHost = stays_up
    image_age_s: float | None = None  # how long images are kept that nothing needs
    outside: Outside = field(default_factory=NobodyOutside)
    network_news: NetworkNews = field(default_factory=NetworkNews)
    suspensions: Suspensions = field(default_factory=Suspensions)
    watches: tuple[
        Callable[[], Coroutine[Any, Any, None]], ...
    ] = ()  # done for ever, from the start on
