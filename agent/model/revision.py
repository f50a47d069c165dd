"""Deployments and revisions: the named thing, and each numbered version of it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from agent.model.clock import Instant
from agent.model.evidence_edition import FIRST_EVIDENCE_EDITION
from agent.model.health_record import HealthRecord
from agent.model.ids import DeploymentName, EnclaveId
from agent.model.release import SELF_SIGNED
from agent.model.resources import GUEST_HTTPS_PORT, Demand, Listen, Publish

LOCALHOST = "localhost"  # the name of a guest that gives a dummy report


def guest_domain_of(name: DeploymentName, default_domain: str | None) -> str:
    """What the guest of a deployment without a domain is told of its own name (DOMAIN)."""
    return f"{name}.{default_domain}" if default_domain else LOCALHOST


class Slot(StrEnum):
    """The two places that a deployment may occupy on its host."""

    BLUE = "blue"
    GREEN = "green"

    @property
    def other(self) -> Slot:
        return Slot.GREEN if self is Slot.BLUE else Slot.BLUE


class ProbeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the deployment wants its workload to be asked: the path, and the name of the host."""

    path: str | None = None
    host: str | None = None


class Revision(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A release plus variables, secret versions and options. Immutable; no secret is in it.

    `secrets` maps a name to the version that the enclave was given; `secret_names`: those that the
    release needs, None in rows of before; `fetches_secrets`: its guest fetches those of them that
    it is not given. `release_digest` is the SHA-256 (hex) of the manifest's bytes: the same tag
    with other bytes is another release. `domain` is what clients ask for; `guest_domain` what the
    guest is told of its own name (DOMAIN), None in rows of before. `dummy_attestation`: its guest
    gives no evidence. `probes` is what was asked for; `health_path` what it comes to with this
    release's shim: None if no path of the workload can be asked without a key. `health_guarded`:
    the shim wants a key even for that one. `boot_wait_s` and `tls_mode` are its release's.
    `image_version`: of the guest's image, without the pin of its digest; None in rows of before.
    `image_source`: whose image it is; `container_images`: of its containers, in order, empty in
    rows of before. `evidence_edition`: by which defaults of the evidence policy it was admitted
    last.
    """

    deployment: DeploymentName
    number: int
    repo: str
    tag: str
    release_digest: str
    demand: Demand
    listen: Listen
    publish: tuple[Publish, ...] = ()
    domain: str | None = None
    variables: dict[str, str] = {}
    secrets: dict[str, int] = {}
    secret_names: tuple[str, ...] | None = None
    fetches_secrets: bool = False
    guest_domain: str | None = None
    dummy_attestation: bool = False
    inbound_ports: tuple[int, ...] = ()
    start_period_s: float = 0.0
    boot_wait_s: float = 0.0
    tls_mode: str = SELF_SIGNED
    container_names: tuple[str, ...] = ()
    container_images: tuple[str, ...] = ()
    probes: ProbeOptions = ProbeOptions()
    health_path: str | None = "/"
    health_guarded: bool = False
    debug: bool = False
    image_version: str | None = None
    image_source: str | None = None
    evidence_edition: int = FIRST_EVIDENCE_EDITION
    created_at: Instant

    @property
    def awaited_secrets(self) -> dict[str, int]:
        """Of the secrets that it is given, those without whose values it is not launched."""
        fetched = set(self.secret_names or ()) if self.fetches_secrets else set()
        return {name: one for name, one in self.secrets.items() if name not in fetched}

    @property
    def public_certificate(self) -> bool:
        """Whether its guest asks for a certificate at each boot."""
        return self.tls_mode != SELF_SIGNED

    @property
    def own_guest_domain(self) -> str | None:
        """The name that its guest was given when it was admitted, or that somebody chose."""
        return self.guest_domain or self.domain or self.variables.get("DOMAIN") or None

    @property
    def listeners(self) -> tuple[Publish, ...]:
        """Every host listener with the guest port behind it, the HTTPS one first."""
        return (Publish(listen=self.listen, guest_port=GUEST_HTTPS_PORT), *self.publish)

    @property
    def listen_claims(self) -> tuple[str, ...]:
        """How its listeners are claimed: `ADDR:PORT`, whole, or `ADDR:PORT/DOMAIN`.

        Only behind the HTTPS one is a name spoken, by which others could be told apart from it.
        """
        https = f"{self.listen}/{self.domain}" if self.domain else str(self.listen)
        return (https, *(str(one.listen) for one in self.publish))

    @property
    def published_ports(self) -> tuple[int, ...]:
        """The guest ports other than 443 that clients are sent to, each once, in order."""
        return tuple(sorted({one.guest_port for one in self.publish}))

    @property
    def probe_host(self) -> str | None:
        """The name that probes ask for; without one it is the guest's address."""
        return self.probes.host or self.domain

    @property
    def guest_ports(self) -> tuple[int, ...]:
        """Every guest port that someone outside the guest speaks to, in a fixed order."""
        wanted = {p.guest_port for p in self.listeners} | set(self.inbound_ports)
        return tuple(sorted(wanted))


class Wish(StrEnum):
    """What the user last asked of the deployment as a whole."""

    RUN = "run"
    STOP = "stop"
    DELETE = "delete"


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What went wrong, kept for the person who asks why. `probe`: the name of the failing one,
    `response`: what it was answered last.
    """

    code: str
    detail: str
    step: str | None = None
    probe: str | None = None
    response: str | None = None
    console_tail: str | None = None


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The durable decision of who takes new connections. enclave None: refuse at once."""

    generation: int
    enclave: EnclaveId | None


class Deployment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The durable row of a deployment.

    `route` is the decision that the data plane is reconciled to; `active_revision` the revision
    that serves, or served last. `relaunches` are the moments of recent relaunches after an exit.
    `restart_old_revision` is what the agent promised to start again as soon as it fits.
    `degraded`: why what serves, or should, is not well, as it was last known.
    `health`: how its active enclave has been.
    """

    name: DeploymentName
    wish: Wish
    active_slot: Slot | None
    active_revision: int | None
    route: Route
    last_revision: int
    relaunches: tuple[Instant, ...] = ()
    fault: Fault | None = None
    restart_old_revision: int | None = msgspec.field(default=None, name="restart_revision")
    degraded: Fault | None = None
    health: HealthRecord = HealthRecord()
    created_at: Instant


class DeploymentStatus(StrEnum):
    """What a user sees of a deployment."""

    DEPLOYING = "deploying"
    RUNNING = "running"
    UPDATING = "updating"
    DEGRADED = "degraded"
    FAILED = "failed"
    STOPPED = "stopped"
    WAITING_FOR_SECRETS = "waiting_for_secrets"
    DELETING = "deleting"
