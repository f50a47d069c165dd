"""User-mode networking: each VM on a network of QEMU's own, reached through loopback listeners.

Needs no privilege and leaves nothing in the kernel. Every enclave has a loopback address of its
own, so that ports never clash; the guest always sees the same small network. What the guest opens
goes out as connections of the QEMU process, to this host's loopback addresses too: there is no
wall between the guest and the host's listeners here, but a `restricted` guest opens nothing at all
(QEMU's `restrict`; what is forwarded to the guest still is).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from agent.enclaves.host_ports import HostPorts
from agent.enclaves.network import GuestAddress, mac_of, parse_subnet
from agent.enclaves.spec import Forward, UserNic
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId

GUEST_SUBNET = "10.0.2.0/24"
GUEST = GuestAddress("10.0.2.15/24", "10.0.2.2")
_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


class UserNetwork:
    """QEMU's slirp. Guest port i of the sorted ones is the i-th host port after the first."""

    kind = "user"

    def __init__(
        self, loopback_subnet: str, ports_file: Path | None = None, *, restricted: bool = False
    ) -> None:
        """Raises NetworkError for a subnet that is not of 127.0.0.0/8.

        `ports_file`: where is kept which ports were chosen.
        """
        self._ports = HostPorts(ports_file)
        self._subnet = parse_subnet("network.loopback_subnet", loopback_subnet, within=_LOOPBACK)
        self._restricted = restricted

    async def start(self) -> None:
        """Nothing is shared."""

    async def watch(self) -> None:
        """Nothing is in the kernel."""

    async def attach(
        self, enclave_id: EnclaveId, address: str, guest_ports: Sequence[int]
    ) -> UserNic:
        """QEMU itself listens, on ports that are free now; nothing of the enclave runs yet."""
        self._ports.choose(address, len(set(guest_ports)))
        endpoints = [(port, self.endpoint(address, port, guest_ports)) for port in guest_ports]
        return UserNic(
            mac=mac_of(address),
            subnet=GUEST_SUBNET,
            gateway=GUEST.gateway,
            guest_address=GUEST.cidr.partition("/")[0],
            forwards=tuple(
                sorted(Forward(end.address, end.port, port) for port, end in endpoints)
            ),
            restricted=self._restricted,
        )

    async def detach(self, enclave_id: EnclaveId) -> None:
        """All of it ended with QEMU."""

    async def list_attached(self) -> set[EnclaveId]:
        """Nothing outlives QEMU."""
        return set()

    def endpoint(self, address: str, guest_port: int, guest_ports: Sequence[int]) -> Endpoint:
        places = {port: place for place, port in enumerate(sorted(set(guest_ports)))}
        return Endpoint(address=address, port=self._ports.first(address) + places[guest_port])

    def guest_address(self, address: str) -> GuestAddress:
        return GUEST

    def addresses(self) -> list[str]:
        return self._addresses

    @cached_property
    def _addresses(self) -> list[str]:
        return [str(host) for host in self._subnet.hosts()]

    async def restore(self) -> None:
        """Nothing was made."""
