"""Hosts of cards in slots: what sits beside them, who shows a picture, and parts made of one."""

from __future__ import annotations

import os
from pathlib import Path

from simulator.sysfs_tree import (
    AUDIO,
    GPU,
    H100_PCIE,
    HGX_BUSES,
    SysfsTree,
    bystanders,
    with_virtual_function,
)

H200_NVL, RTX_PRO_6000_SERVER, RTX_PRO_6000_WS, L40S = 0x233B, 0x2BB5, 0x2BB1, 0x26B9
_GB202_AUDIO, _AD102_AUDIO = 0x22E8, 0x22BA
_GB202_BARS_MIB = (64, 131072, 32)
_VIRTUAL_FUNCTIONS = 2


def rtx_pro_6000_4x(root: Path) -> SysfsTree:
    """4 RTX PRO 6000 Server, two a NUMA node, each with its audio function in its group."""
    tree = SysfsTree(root)
    for index, bus in enumerate(HGX_BUSES[:4]):
        _card_with_audio(
            tree,
            bus,
            device=RTX_PRO_6000_SERVER,
            audio=_GB202_AUDIO,
            numa_node=index // 2,
            bars_mib=_GB202_BARS_MIB,
        )
    bystanders(tree)
    return tree


def h200_nvl_bridge(root: Path) -> SysfsTree:
    """2 H200 NVL that a bridge joins: on the bus two cards like any, alone in their groups."""
    tree = SysfsTree(root)
    for bus in HGX_BUSES[:2]:
        tree.gpu_behind_port(
            f"pci0000:{bus - 1:02x}", bus, device=H200_NVL, bars_mib=(64, 262144, 32)
        )
    bystanders(tree)
    return tree


def display_beside_h100(root: Path) -> SysfsTree:
    """An RTX PRO 6000 Workstation with the console and a screen on it, and an H100 beside it."""
    tree = SysfsTree(root)
    shows = _card_with_audio(
        tree,
        HGX_BUSES[0],
        device=RTX_PRO_6000_WS,
        audio=_GB202_AUDIO,
        bars_mib=_GB202_BARS_MIB,
    )
    tree.put(shows, "boot_vga", "1")
    connector = tree.devices / shows / "drm/card1/card1-DP-1"
    connector.mkdir(parents=True)
    tree.put(connector, "enabled", "enabled")
    (tree.devices / shows / "drm/renderD128").mkdir()
    bus = HGX_BUSES[1]
    tree.gpu_behind_port(f"pci0000:{bus - 1:02x}", bus, device=H100_PCIE)
    bystanders(tree)
    return tree


def virtual_functions_of_l40s(root: Path) -> SysfsTree:
    """2 L40S; of the first the host's driver has made virtual functions, and has them."""
    tree = SysfsTree(root)
    for bus in HGX_BUSES[:2]:
        _card_with_audio(tree, bus, device=L40S, audio=_AD102_AUDIO)
    parted = f"0000:{HGX_BUSES[0]:02x}:00.0"
    for number in range(_VIRTUAL_FUNCTIONS):
        virtual = with_virtual_function(tree, parted, number=number, device=L40S)
        link = tree.devices / parted / f"virtfn{number}"
        link.symlink_to(os.path.join("..", virtual))  # noqa: PTH118 - the text of a link
        tree.join(virtual, tree.next_group())
    bystanders(tree)
    return tree


def _card_with_audio(
    tree: SysfsTree, bus: int, *, device: int, audio: int, numa_node: int = 0, **more: object
) -> str:
    """Behind a port of its own; returns the address of its GPU."""
    group = tree.next_group()
    settings = {"device": device, "group": group, "numa_node": numa_node, **more}
    bdf = tree.gpu_behind_port(f"pci0000:{bus - 1:02x}", bus, class_code=GPU, **settings)
    tree.add(
        (tree.devices / bdf).resolve().parent,
        f"0000:{bus:02x}:00.1",
        class_code=AUDIO,
        device=audio,
        driver="snd_hda_intel",
        group=group,
        numa_node=numa_node,
    )
    return bdf
