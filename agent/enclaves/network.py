"""How a guest is reached: the port behind which a tap network or QEMU's user-mode network stands.

Invariants of every implementation: an enclave's address is its own for as long as it is attached;
`attach` and `detach` are idempotent and may be repeated after a crash between any two of their
steps; links, addresses and sysctls that somebody else made are never changed or removed.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.enclaves.spec import Nic
from agent.errors import AgentError
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId


class NetworkError(AgentError):
    """The network could not be made ready. The text names what is in the way and the mend."""

    @property
    def code(self) -> str:
        return "network_unavailable"


@dataclass(frozen=True, slots=True)
class GuestAddress:
    """What the guest is told of itself: `cidr` is ADDRESS/PREFIX, both IPv4."""

    cidr: str
    gateway: str


def mac_of(address: str) -> str:
    """The card's address of the enclave that has this IPv4 address: unique, locally administered.

    That it follows from the address alone lets a launch be repeated, and a frame be told apart
    from one that another guest forged.
    """
    return ":".join(f"{byte:02x}" for byte in b"\x02\x00" + ipaddress.IPv4Address(address).packed)


def parse_subnet(
    field: str, text: str, *, within: ipaddress.IPv4Network | None = None
) -> ipaddress.IPv4Network:
    """A subnet from the configuration's `field`. Raises NetworkError that names the field."""
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise NetworkError(f"{field}: {text!r} is not an IPv4 subnet: {error}") from None
    if not 16 <= subnet.prefixlen <= 30:
        raise NetworkError(f"{field}: the prefix of {text} must be 16 to 30")
    if within is not None and not subnet.subnet_of(within):
        raise NetworkError(f"{field}: {text} is not inside {within}")
    return subnet


class Network(Protocol):
    """A network of guests. `address` is always the enclave's own address out of `addresses()`."""

    kind: str  # "tap" or "user", for /status

    async def start(self) -> None:
        """Make ready what all guests share. Idempotent; adopts what an earlier run left.

        Raises NetworkError, having undone what this call made.
        """
        ...

    async def watch(self) -> None:
        """Keep in force what holds guests apart, for ever. Returns where there is nothing.

        Raises NetworkError when it cannot be put back; to be begun again then.
        """
        ...

    async def attach(self, enclave_id: EnclaveId, address: str, guest_ports: Sequence[int]) -> Nic:
        """Make the enclave's card ready for QEMU. Idempotent. Raises NetworkError."""
        ...

    async def detach(self, enclave_id: EnclaveId) -> None:
        """Remove what `attach` made, also what is left of an unfinished one. Idempotent."""
        ...

    async def list_attached(self) -> set[EnclaveId]:
        """The enclaves that have something here, seen in the kernel and not remembered."""
        ...

    def endpoint(self, address: str, guest_port: int, guest_ports: Sequence[int]) -> Endpoint:
        """Where the host reaches that guest port, as it was attached last. Raises KeyError."""
        ...

    def guest_address(self, address: str) -> GuestAddress:
        """What to write into the guest's external config. Pure."""
        ...

    def addresses(self) -> list[str]:
        """Every address that an enclave may be given, in order of preference. Pure."""
        ...

    async def restore(self) -> None:
        """Remove all that `start` and `attach` made; put back what was there. Idempotent."""
        ...
