"""What verified NVIDIA evidence claims of one device. Values only. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from agent.attestation.manifest_name import ManifestName


class DeviceKind(StrEnum):
    """What a piece of evidence is of: switches come beside the GPUs that they join."""

    GPU = "gpu"
    NVSWITCH = "nvswitch"


class Feature(IntEnum):
    """What a GPU says that it is set up for: alone, with others over encrypted links, or with all
    of a board's over its switches.
    """

    SPT = 0
    MPT = 1
    PPCIE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardClaims:
    """What a report says of the board; None: nothing. `ids`: of a GPU the switches at its links,
    of a switch its own. `gpus`: of a switch, those at its ports. `protected_pcie`: of older
    reports, which state no `feature`. `lock`: of a switch.
    """

    feature: int | None = None
    protected_pcie: bool | None = None
    lock: int | None = None
    ids: frozenset[bytes] = frozenset()
    gpus: frozenset[bytes] = frozenset()

    @property
    def on_a_board(self) -> bool | None:
        """Whether the GPU is in protected-PCIe mode; None where it does not say."""
        return self.protected_pcie if self.feature is None else self.feature == Feature.PPCIE


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuClaims:
    """One device. Every field is under signatures that hold up to the pinned root.

    `device`: the device's own name in its certificate. `identity`: SHA-256 of the key that was
    provisioned into it. `measurements`: (index, digest), as its firmware gave them. `fwid`: the
    firmware digest that its certificate was made for; None where the report does not repeat it, so
    that nothing could be compared. `driver_version`: GPUs only. `simulated`: under another root
    than NVIDIA's. `manifests`: the reference manifests that its report names. `board`: in which
    mode, beside which others. `id`: by which a board's others name it; None where its certificate
    does not state it in the known form.
    """

    kind: DeviceKind
    architecture: str
    chip: str
    device: str
    identity: str
    nonce: bytes
    measurements: tuple[tuple[int, bytes], ...]
    fwid: bytes | None
    vbios_version: str
    driver_version: str | None
    simulated: bool
    manifests: tuple[ManifestName, ...] = ()
    board: BoardClaims = BoardClaims()
    id: bytes | None = None
