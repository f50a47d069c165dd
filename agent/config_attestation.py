"""The configuration's part about evidence: what it must say, and where collateral comes from."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from agent.config_section import Section
from agent.model.shape import Shape
from agent.model.tcb_status import TcbStatus


class SignerRule(StrEnum):
    ANY = "any"
    VCEK = "vcek"
    VLEK = "vlek"


class TcbMinimum(Section, frozen=True, kw_only=True):
    """The least security version of each part of AMD's TCB. `fmc`: Turin only."""

    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0
    fmc: int = 0


class SnpFloors(StrEnum):
    """Which lowest security versions: those of AMD's bulletins for the processor, or none."""

    ENDORSED = "endorsed"
    NONE = "none"


class SnpMinimum(TcbMinimum, frozen=True, kw_only=True):
    """The operator's own floors, in the place of the endorsed ones. The vectors are sets of bits
    that must be among those that a report of version 5 has.
    """

    launch_mitigations: int = 0
    current_mitigations: int = 0


class SnpConfig(Section, frozen=True, kw_only=True):
    """What a SEV-SNP report must say, beyond what its release and its guest fix.

    Debugging and migration agents are refused whatever stands here. `minimum`: floors of the
    current, reported and launch TCB. `require_crl` None: once a list was ever held.
    `require_committed`: no firmware that could be rolled back. `minimum_abi`: of the platform's
    firmware, MAJOR.MINOR. Digests are pins: hex of 48 bytes; without one no such key is taken but
    what the release states.
    """

    signer: SignerRule = SignerRule.VCEK
    allow_smt: bool = True
    allow_cxl: bool = False
    require_single_socket: bool = False
    require_ciphertext_hiding: bool = False
    require_alias_check: bool = False
    require_crl: bool | None = None
    require_committed: bool = False
    max_vmpl: int = 0
    minimum_abi: str = "0.0"
    minimum_guest_svn: int = 0
    minimum: SnpFloors | SnpMinimum = SnpFloors.ENDORSED
    current_tcb: TcbMinimum = TcbMinimum()
    reported_tcb: TcbMinimum = TcbMinimum()
    committed_tcb: TcbMinimum = TcbMinimum()
    launch_tcb: TcbMinimum = TcbMinimum()
    id_key_digest: str | None = None
    author_key_digest: str | None = None


class TdxUpdate(StrEnum):
    """Which of Intel's TCB sets is fetched: it gives out two at once."""

    STANDARD = "standard"
    EARLY = "early"


class TdxPlatform(Section, frozen=True, kw_only=True):
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


class TdxConfig(Section, frozen=True, kw_only=True):
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
    update: TdxUpdate = TdxUpdate.STANDARD
    minimum_tee_tcb_svn: str = "03010200000000000000000000000000"
    fmspcs: tuple[str, ...] | None = None
    allow_dynamic_platform: bool = False
    allow_cached_keys: bool = False
    allow_smt: bool = False
    td_attributes: str = "0000001000000000"
    xfam: str = "e702060000000000"


class VbiosMinimum(Section, frozen=True, kw_only=True):
    """Five numbers in hex, as `96.00.74.00.01`; they count up within one architecture only."""

    hopper: str | None = None
    blackwell: str | None = None
    nvswitch: str | None = None


class GpuPolicy(Section, frozen=True, kw_only=True):
    """What NVIDIA's devices must be. `require_rim`: all of their measurements are held against
    the vendor's reference manifests. `allow_expired_rim`: those count whose certificate has ended.
    """

    require_rim: bool = False
    allow_expired_rim: bool = False
    minimum_driver: str | None = None
    minimum_vbios: VbiosMinimum = VbiosMinimum()


class CollateralConfig(Section, frozen=True, kw_only=True):
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


class AttestationConfig(Section, frozen=True, kw_only=True):
    """`allow_unfresh`: believe guests whose evidence answers no nonce (documents v2).
    `require_chip_id`: evidence names its processor; masked ids, and VLEKs, are refused.
    """

    interval_s: float = 60
    allow_unfresh: bool = False
    require_chip_id: bool = False
    on_loss: str = "degrade"
    snp: SnpConfig = SnpConfig()
    tdx: TdxConfig = TdxConfig()
    gpu: GpuPolicy = GpuPolicy()
    collateral: CollateralConfig = CollateralConfig()
