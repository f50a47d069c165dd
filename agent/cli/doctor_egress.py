"""The doctor's line about what guests may reach: the policy, and whether it can be held here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config

_WHAT = "egress"
_TAPS = "use taps (network.mode: tap, as root)"


def egress_line(config: Config) -> Line:
    """An error where the daemon would not start with it."""
    from agent.config import NetworkMode

    network = config.network
    if network.mode is NetworkMode.USER or os.geteuid() != 0:
        return _on_user_network(config)
    return _hairpin(config) or _on_taps(config)


def _on_user_network(config: Config) -> Line:
    from agent.model.egress import GuestEgress

    match config.network.guest_egress:
        case GuestEgress.NONE:
            detail = "none: QEMU opens no connection for guests, to ports of this host neither"
            if config.network.guest_egress_allow:
                return Line(_WHAT, "error", f"{detail}, nor to guest_egress_allow", _TAPS)
            return Line(_WHAT, "ok", detail)
        case GuestEgress.INTERNET:
            detail = "internet cannot be held on a user-mode network"
            return Line(_WHAT, "error", detail, f"{_TAPS}, or network.guest_egress: none or any")
        case _:
            detail = "nothing is held on a user-mode network: guests reach what this host reaches"
            return Line(_WHAT, "warn", detail, f"{_TAPS}, or network.guest_egress: none")


def _hairpin(config: Config) -> Line | None:
    from agent.config import TrafficMode

    network = config.network
    if network.hairpin and config.traffic.mode not in (TrafficMode.AUTO, TrafficMode.NFTABLES):
        detail = f"network.hairpin cannot be had with traffic.mode: {config.traffic.mode}"
        return Line(_WHAT, "error", detail, "use traffic.mode: nftables")
    return None


def _on_taps(config: Config) -> Line:
    from agent.config import TrafficMode
    from agent.model.egress import GuestEgress

    network = config.network
    mode = network.guest_egress
    became = (
        "auto: internet, but any where deployments are from before the field (see status)"
        if mode is GuestEgress.AUTO
        else str(mode)
    )
    allow = ", ".join(network.guest_egress_allow)
    detail = f"{became}{f', and {allow}' if allow else ''}; metadata addresses are closed"
    if config.traffic.mode in (TrafficMode.HAPROXY, TrafficMode.USERSPACE):
        detail += f"; refusals are not counted with traffic.mode: {config.traffic.mode}"
    return Line(_WHAT, "ok", detail)
