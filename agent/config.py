"""The configuration: typed, strict, every key optional.

What the file says wrongly is told as `path: reason`, all of it at once; nothing falls back to a
default because of an error. `auto` values stay `auto` here: the composition root resolves them and
says what they became.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from agent.model.shape import Shape
from agent.model.tcb_status import TcbStatus

# What everything says that shows, or comes of, `tee: simulated`.
SIMULATED = "SIMULATED — NOT CONFIDENTIAL"


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the sections."""


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
    enclaves get loopback addresses out of `loopback_subnet`.
    """

    mode: NetworkMode = NetworkMode.AUTO
    bridge: str = "enclave0"
    subnet: str = "10.215.0.0/24"
    loopback_subnet: str = "127.215.0.0/24"
    host_ports: tuple[int, ...] = ()  # holes: TCP ports of the host that guests may reach


class TrafficConfig(_Section, frozen=True, kw_only=True):
    mode: TrafficMode = TrafficMode.AUTO


class QemuConfig(_Section, frozen=True, kw_only=True):
    """`tdx_firmware`: what trust domains boot, whose MRTD `attestation.tdx.platforms` endorses.
    `quote_service`: where QEMU has their quotes made, `vsock:CID:PORT` or a unix socket's path.
    """

    binary: str = "qemu-system-x86_64"
    firmware_dir: Path = Path("/usr/share/enclave-agent/firmware")
    user: str | None = None
    tdx_firmware: Path | None = None
    quote_service: str = "vsock:2:4050"


class SignatureConfig(_Section, frozen=True, kw_only=True):
    """Who may sign a release. `trusted_root`: the file that pins Sigstore's keys.

    `{repo}` and `{tag}` are the release's; `{repository}` (OWNER/NAME) is what `repository` says.
    """

    trusted_root: Path | None = None
    issuer: str = "https://token.actions.githubusercontent.com"
    repository: str = "{repo}"
    identity: str = "https://github.com/{repository}/.github/workflows/build.yml@refs/tags/{tag}"
    predicate_type: str | None = "https://tinfoil.sh/predicate/snp-tdx-multiplatform/v1"


class ReleasesConfig(_Section, frozen=True, kw_only=True):
    """`default_domain`: guests of deployments without a domain are named NAME.DEFAULT_DOMAIN."""

    source: str | None = None
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
    interval_s: float = 2
    timeout_s: float = 5
    success_threshold: int = 2
    failure_threshold: int = 3


class SignerRule(StrEnum):
    ANY = "any"
    VCEK = "vcek"
    VLEK = "vlek"


class TcbMinimum(_Section, frozen=True, kw_only=True):
    """The least security version of each part of AMD's TCB. `fmc`: Turin only."""

    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0
    fmc: int = 0


class SnpConfig(_Section, frozen=True, kw_only=True):
    """What a SEV-SNP report must say, beyond what its release and its guest fix.

    Debugging and migration agents are refused whatever stands here. `minimum_abi`: of the
    platform's firmware, MAJOR.MINOR. Digests are pins: hex of 48 bytes.
    """

    signer: SignerRule = SignerRule.ANY
    allow_smt: bool = True
    allow_cxl: bool = False
    require_single_socket: bool = False
    require_ciphertext_hiding: bool = False
    require_alias_check: bool = False
    require_crl: bool = False
    max_vmpl: int = 0
    minimum_abi: str = "0.0"
    minimum_guest_svn: int = 0
    current_tcb: TcbMinimum = TcbMinimum()
    reported_tcb: TcbMinimum = TcbMinimum()
    committed_tcb: TcbMinimum = TcbMinimum()
    launch_tcb: TcbMinimum = TcbMinimum()
    id_key_digest: str | None = None
    author_key_digest: str | None = None


class TdxPlatform(_Section, frozen=True, kw_only=True):
    """A firmware (MRTD) on a virtual machine (RTMR0), which count together. `name`: for print.

    `shape`: the machine that the register is of; None: it counts for any.
    """

    mrtd: str
    rtmr0: str
    name: str | None = None
    shape: Shape | None = None

    def fits(self, shape: Shape | None) -> bool:
        """Whether it is endorsed for a VM of this shape (None: not known)."""
        return self.shape is None or self.shape == shape


class TdxConfig(_Section, frozen=True, kw_only=True):
    """What a TDX quote must say, beyond what its release and its guest fix.

    Debugging is refused whatever stands here. `platforms` and `mrseams` are lists of what is
    endorsed: an empty one accepts nothing. `fmspcs` null: any platform type. All hex is in lower
    case; attributes, XFAM and SVN are in the order of the report's bytes.
    """

    platforms: tuple[TdxPlatform, ...] = ()
    mrseams: tuple[str, ...] = ()
    tcb_statuses: tuple[TcbStatus, ...] = (TcbStatus.UP_TO_DATE,)
    refused_advisories: tuple[str, ...] = ()
    minimum_tcb_evaluation_data_number: int = 0
    minimum_tee_tcb_svn: str = "03010200000000000000000000000000"
    fmspcs: tuple[str, ...] | None = None
    allow_dynamic_platform: bool = False
    allow_cached_keys: bool = False
    allow_smt: bool = False
    td_attributes: str = "0000001000000000"
    xfam: str = "e702060000000000"


class VbiosMinimum(_Section, frozen=True, kw_only=True):
    """Five numbers in hex, as `96.00.74.00.01`; they count up within one architecture only."""

    hopper: str | None = None
    blackwell: str | None = None
    nvswitch: str | None = None


class GpuPolicy(_Section, frozen=True, kw_only=True):
    """What NVIDIA's devices must be. `require_rim`: all of their measurements are held against
    the vendor's reference manifests. `allow_expired_rim`: those count whose certificate has ended.
    """

    require_rim: bool = False
    allow_expired_rim: bool = False
    minimum_driver: str | None = None
    minimum_vbios: VbiosMinimum = VbiosMinimum()


class CollateralConfig(_Section, frozen=True, kw_only=True):
    """Where the vendors' certificates and lists come from. `directory`: the operator's, read
    first; `offline`: no vendor is asked. `listen`: where guests may ask us for theirs.
    """

    amd_url: str = "https://kdsintf.amd.com"
    intel_url: str = "https://api.trustedservices.intel.com"
    intel_root_crl_url: str = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    nvidia_rim_url: str = "https://rim.attestation.nvidia.com/v1/rim"
    directory: Path | None = None
    offline: bool = False
    listen: str | None = None


class AttestationConfig(_Section, frozen=True, kw_only=True):
    """`allow_unfresh`: believe guests whose evidence answers no nonce (documents v2)."""

    interval_s: float = 60
    allow_unfresh: bool = False
    on_loss: str = "degrade"
    snp: SnpConfig = SnpConfig()
    tdx: TdxConfig = TdxConfig()
    gpu: GpuPolicy = GpuPolicy()
    collateral: CollateralConfig = CollateralConfig()


class SecretsConfig(_Section, frozen=True, kw_only=True):
    at_rest: str = "off"


class TlsConfig(_Section, frozen=True, kw_only=True):
    certificate: Path
    key: Path
    ca: Path
    crl: Path | None = None
    trust_domain: str


class ListenConfig(_Section, frozen=True, kw_only=True):
    socket: Path | None = None  # default: <run_dir>/agent.sock
    status: str | None = "127.0.0.1:8470"
    rpc: str | None = "0.0.0.0:8471"  # off without certificates
    tls: TlsConfig | None = None


class CoordinatorConfig(_Section, frozen=True, kw_only=True):
    url: str | None = None
    interval_s: float = 10
    enrol_token_file: Path | None = None


class LogConfig(_Section, frozen=True, kw_only=True):
    level: str = "info"
    format: str = "auto"


class Config(_Section, frozen=True, kw_only=True):
    """All of it."""

    host_id: str = "auto"
    state_dir: Path = Path("/var/lib/enclave-agent")
    run_dir: Path = Path("/run/enclave-agent")
    tee: Tee = Tee.AUTO
    allow_unattested: bool = False
    accel: Accel = Accel.AUTO
    supervisor: SupervisorKind = SupervisorKind.AUTO
    network: NetworkConfig = NetworkConfig()
    traffic: TrafficConfig = TrafficConfig()
    qemu: QemuConfig = QemuConfig()
    releases: ReleasesConfig = ReleasesConfig()
    host: HostConfig = HostConfig()
    inventory: InventoryConfig = InventoryConfig()
    reserve: ReserveConfig = ReserveConfig()
    store: StoreConfig = StoreConfig()
    update: UpdateConfig = UpdateConfig()
    probes: ProbesConfig = ProbesConfig()
    attestation: AttestationConfig = AttestationConfig()
    secrets: SecretsConfig = SecretsConfig()
    listen: ListenConfig = ListenConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    log: LogConfig = LogConfig()
