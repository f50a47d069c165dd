"""Who tells whether evidence is of this machine: its own processors, its cards, its store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.attestation.recogniser import OwnChips, Recogniser, no_own_chips
from agent.config import Config, Tee
from agent.host.clock import Clock
from agent.host.identity import HostIdentityError, derive_host_id
from agent.host.sev import chip_ids
from agent.host.units import borrow_here
from agent.inventory.preparation.card_identity import identify, read_space, space_by
from agent.model.ids import Bdf, HostId
from agent.store.port import Store

if TYPE_CHECKING:
    from agent.attestation.simulated_chain import SimulatedChain


def recogniser_of(
    config: Config,
    tee: Tee,
    store: Store,
    clock: Clock,
    host_id: HostId,
    *,
    chain: SimulatedChain | None,
    in_units: bool = False,
) -> Recogniser:
    """Nothing is asked of the hardware yet."""
    devices = config.host.sysfs_root / "bus/pci/devices"
    read = space_by(borrow_here) if in_units else read_space

    def serial_at(bdf: Bdf) -> str | None:
        return identify(devices / bdf, read).serial

    return Recogniser(
        store,
        clock,
        _machine(host_id),
        own_chips=_own_chips(tee, chain),
        serial_at=serial_at,
        require_chip_id=config.attestation.require_chip_id,
    )


def _machine(host_id: HostId) -> str:
    """By its machine id, which a name in the configuration does not follow to another machine."""
    try:
        return derive_host_id()
    except HostIdentityError:
        return host_id


def _own_chips(tee: Tee, chain: SimulatedChain | None) -> OwnChips:
    if chain is not None:
        return lambda: (chain.chip_id,)
    return chip_ids if tee is Tee.SEV_SNP else no_own_chips
