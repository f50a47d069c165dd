"""What may be done with the IOMMU group of a device: the one judge of it. Pure.

A group goes to one guest as a whole. It is judged by who holds each member, as the kernel does,
and not by what the members are: a function without a driver hinders nobody.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from agent.model.ids import Bdf
from agent.model.pci import GroupMember, PciKind
from agent.model.pci_drivers import is_held

DEVICES = frozenset({PciKind.GPU, PciKind.SWITCH})  # what is ever handed out
_LEFT = frozenset({PciKind.BRIDGE, PciKind.VIRTUAL})  # never bound with a card, even of its slot


class GroupVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """`mates`: what is bound with the device, itself included: GPUs, switches, and the other
    functions of their cards. `devices`: the GPUs and switches of them without itself, which can
    only go to the same guest. `held`: others, in the hands of a driver of the host's.
    `is_known`: the device has a group.
    """

    mates: tuple[Bdf, ...]
    devices: tuple[Bdf, ...] = ()
    held: tuple[GroupMember, ...] = ()
    is_known: bool = True

    @property
    def is_viable(self) -> bool:
        """Whether the group can be given to a guest."""
        return self.is_known and not self.held

    @property
    def fault(self) -> str | None:
        """Why not, as the end of a sentence about the device; None if it can."""
        if not self.is_known:
            return "has no IOMMU group"
        if not self.held:
            return None
        others = ", ".join(f"{one.bdf} (with {one.driver})" for one in self.held)
        return f"shares its IOMMU group with {others}, which the host uses"

    @property
    def mend(self) -> str:
        """What mends that."""
        if not self.is_known:
            return "enable the IOMMU in firmware and kernel (intel_iommu=on or amd_iommu=on)"
        return "take the others from their drivers, or turn ACS on, or use another slot"


def judge_group(bdf: Bdf, iommu_group: int | None, members: Iterable[GroupMember]) -> GroupVerdict:
    """Of the device `bdf`, whose group has these members, itself among them."""
    every = tuple(members)
    devices = {one.bdf for one in every if one.kind in DEVICES} | {bdf}
    cards = {_card(one) for one in devices}
    mates = {one.bdf for one in every if one.kind not in _LEFT and _card(one.bdf) in cards}
    mates |= devices
    return GroupVerdict(
        mates=tuple(sorted(mates)),
        devices=tuple(sorted(devices - {bdf})),
        held=tuple(one for one in every if one.bdf not in mates and is_held(one.driver)),
        is_known=iommu_group is not None,
    )


def _card(bdf: Bdf) -> str:
    """Domain, bus and device: what all functions of one card share."""
    return bdf.rpartition(".")[0]
