"""The configuration: typed, strict, every key optional.

What the file says wrongly is told as `path: reason`, all of it at once; nothing falls back to a
default because of an error. `auto` values stay `auto` here: the composition root resolves them and
says what they became.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from agent.config_attestation import (
    AttestationConfig,
    CollateralConfig,
    GpuPolicy,
    SignerRule,
    SnpConfig,
    SnpFloors,
    SnpMinimum,
    TcbMinimum,
    TdxConfig,
    TdxPlatform,
    TdxUpdate,
    VbiosMinimum,
)
from agent.config_limits import DEFAULT_LIMITS, LimitsConfig
from agent.config_section import Section as _Section
from agent.model.egress import GuestEgress

# What is defined elsewhere, and is a part of the configuration all the same.
__all__ = [
    "AttestationConfig",
    "CollateralConfig",
    "GpuPolicy",
    "SignerRule",
    "SnpConfig",
    "SnpFloors",
    "SnpMinimum",
    "TcbMinimum",
    "TdxConfig",
    "TdxPlatform",
    "TdxUpdate",
    "VbiosMinimum",
]

# What everything says that shows, or comes of, `tee: simulated`.
SIMULATED = "SIMULATED — NOT CONFIDENTIAL"


class Tee(StrEnum):
    AUTO = "auto"
    SEV_SNP = "sev-snp"
    TDX = "tdx"
    SIMULATED = "simulated"
    NONE = "none"


class Accel(StrEnum):
    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class SupervisorKind(StrEnum):
    AUTO = "auto"
    SYSTEMD = "systemd"
    DETACHED = "detached"


class CageMode(StrEnum):
    ENFORCE = "enforce"
    REPORT = "report"
    OFF = "off"


class NetworkMode(StrEnum):
    AUTO = "auto"
    TAP = "tap"
    USER = "user"


class TrafficMode(StrEnum):
    AUTO = "auto"
    NFTABLES = "nftables"
    HAPROXY = "haproxy"
    USERSPACE = "userspace"


class NetworkConfig(_Section, frozen=True, kw_only=True):
    """`subnet` is the guests' on a tap network (the bridge takes its first address); in user mode
    enclaves get loopback addresses out of `loopback_subnet`. `guest_egress_allow`: CIDR[:PORT].
    """

    mode: NetworkMode = NetworkMode.AUTO
    bridge: str = "enclave0"
    subnet: str = "10.215.0.0/24"
    loopback_subnet: str = "127.215.0.0/24"
    host_ports: tuple[int, ...] = ()  # holes: TCP ports of the host that guests may reach
    guest_egress: GuestEgress = GuestEgress.AUTO
    guest_egress_allow: tuple[str, ...] = ()
    hairpin: bool = False  # whether guests reach listeners of their own host


class TrafficConfig(_Section, frozen=True, kw_only=True):
    mode: TrafficMode = TrafficMode.AUTO


class QemuConfig(_Section, frozen=True, kw_only=True):
    """`tdx_firmware`: what trust domains boot, whose MRTD `attestation.tdx.platforms` endorses.
    `quote_service`: where QEMU has their quotes made, `vsock:CID:PORT` or a unix socket's path.
    `cage` None: enforced where this host can; said so, it is refused to run anything new without.
    """

    binary: str = "qemu-system-x86_64"
    firmware_dir: Path = Path("/usr/share/enclave-agent/firmware")
    user: str | None = None
    tdx_firmware: Path | None = None
    quote_service: str = "vsock:2:4050"
    cage: CageMode | None = None


class SignatureConfig(_Section, frozen=True, kw_only=True):
    """Who may sign a release. `trusted_root`: the file that pins Sigstore's keys.

    `{repo}` and `{tag}` are the release's; `{repository}` (OWNER/NAME) is what `repository` says.
    """

    trusted_root: Path | None = None
    issuer: str = "https://token.actions.githubusercontent.com"
    repository: str = "{repo}"
    identity: str = "https://github.com/{repository}/.github/workflows/build.yml@refs/tags/{tag}"
    predicate_type: str | None = "https://tinfoil.sh/predicate/snp-tdx-multiplatform/v1"


VENDOR_IMAGES = "https://images.tinfoil.sh/cvm"


class ReleasesConfig(_Section, frozen=True, kw_only=True):
    """`default_domain`: guests of deployments without a domain are named NAME.DEFAULT_DOMAIN.
    `image_sources`: where images may be fetched that `source` has not; nothing else is asked.
    """

    source: str | None = None
    github_token_file: Path | None = None  # for the source `github`: a token, for it alone
    image_sources: tuple[str, ...] = (VENDOR_IMAGES,)
    default_domain: str | None = None
    cache_dir: Path | None = None  # default: <state_dir>/cache
    cache_max_gib: float = 200
    cache_max_age_days: float = 30  # of what neither runs nor can be rolled back to
    models_dir: Path | None = None
    require_signature: bool = False
    signature: SignatureConfig = SignatureConfig()


class HostConfig(_Section, frozen=True, kw_only=True):
    sysfs_root: Path = Path("/sys")
    cgroup_root: Path = Path("/sys/fs/cgroup")
    nvml_library: str = "libnvidia-ml.so.1"
    gpu_tools: str = "nvidia_gpu_tools.py"
    gpu_group_sizes: str | tuple[int, ...] = "auto"
    vcpus: int | None = None  # what to offer, if not the processors counted (overcommitment)


class GpusConfig(_Section, frozen=True, kw_only=True):
    """Which GPUs are ours to take, each by UUID, PCI address, slot or model: `include`, None for
    all, without `exclude`. `stop_units`: services that only observe GPUs; the agent stops them
    for a preparation that they hinder, and starts them again.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    stop_units: tuple[str, ...] = ()


class InventoryConfig(_Section, frozen=True, kw_only=True):
    interval_s: float = 5


class ReserveConfig(_Section, frozen=True, kw_only=True):
    memory_mib: int = 2048
    vcpus: int = 1


class StoreConfig(_Section, frozen=True, kw_only=True):
    backup_interval_s: float = 30


class UpdateConfig(_Section, frozen=True, kw_only=True):
    dwell_s: float = 5
    soak_s: float = 30
    drain_s: float = 30
    boot_deadline_s: str | float = "auto"
    pull_allowance_s: float = 300
    stop_grace_s: float = 60
    revert_after_switch: bool = True


class ProbesConfig(_Section, frozen=True, kw_only=True):
    """`outside`: whether listeners are asked as clients ask them, auto or never."""

    interval_s: float = 2
    timeout_s: float = 5
    success_threshold: int = 2
    failure_threshold: int = 3
    outside: str = "auto"


class SecretsConfig(_Section, frozen=True, kw_only=True):
    at_rest: str = "off"


class TlsConfig(_Section, frozen=True, kw_only=True):
    certificate: Path
    key: Path
    ca: Path
    crl: Path | None = None
    trust_domain: str


class ListenConfig(_Section, frozen=True, kw_only=True):
    """`floating`: prefixes of addresses that come and go, on which deployments may listen."""

    socket: Path | None = None  # default: <run_dir>/agent.sock
    status: str | None = "127.0.0.1:8470"
    status_names: tuple[str, ...] = ()  # besides this host's own
    rpc: str | None = "0.0.0.0:8471"  # off without certificates
    tls: TlsConfig | None = None
    floating: tuple[str, ...] = ()


class CoordinatorConfig(_Section, frozen=True, kw_only=True):
    url: str | None = None
    interval_s: float = 10
    enrol_token_file: Path | None = None


class LogConfig(_Section, frozen=True, kw_only=True):
    level: str = "info"
    format: str = "auto"


class Config(_Section, frozen=True, kw_only=True):
    """All of it. `relaunch_unhealthy_after_s` None: what stays unhealthy is left as it is."""

    host_id: str = "auto"
    state_dir: Path = Path("/var/lib/enclave-agent")
    run_dir: Path = Path("/run/enclave-agent")
    tee: Tee = Tee.AUTO
    allow_unattested: bool = False
    accel: Accel = Accel.AUTO
    supervisor: SupervisorKind = SupervisorKind.AUTO
    network: NetworkConfig = NetworkConfig()
    traffic: TrafficConfig = TrafficConfig()
    limits: LimitsConfig = DEFAULT_LIMITS
    qemu: QemuConfig = QemuConfig()
    releases: ReleasesConfig = ReleasesConfig()
    host: HostConfig = HostConfig()
    gpus: GpusConfig = GpusConfig()
    inventory: InventoryConfig = InventoryConfig()
    reserve: ReserveConfig = ReserveConfig()
    store: StoreConfig = StoreConfig()
    update: UpdateConfig = UpdateConfig()
    probes: ProbesConfig = ProbesConfig()
    relaunch_unhealthy_after_s: float | None = None
    attestation: AttestationConfig = AttestationConfig()
    secrets: SecretsConfig = SecretsConfig()
    listen: ListenConfig = ListenConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    log: LogConfig = LogConfig()
