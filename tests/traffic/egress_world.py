"""A host with two guests on real taps and one neighbour, behind which is everything else.

The neighbour has an address of every kind and serves port 80 on all of them, so that whatever
does not get through was refused by the host.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from agent.enclaves.network_tap import TapNetwork
from agent.model.egress import EgressPolicy, GuestEgress, parse_allowed
from agent.model.ids import EnclaveId
from agent.traffic.nftables import NftablesTraffic
from tests.fakes.netns import Server, ip, join, own_host
from tests.fakes.tap_guest import TapGuest
from tests.traffic.remote import Remote
from tests.traffic.worlds import BRIDGE, CLIENT, GATEWAY, OUTSIDE, PORTS, SUBNET

BLUE, GREEN = "10.99.7.2", "10.99.7.3"
ENCLAVES = {BLUE: EnclaveId("blueblue"), GREEN: EnclaveId("greengr2")}
INTERNET = "203.0.113.9"
LINK_LOCAL = "169.254.10.10"
METADATA = ("169.254.169.254", "100.100.100.200", "168.63.129.16", "169.254.170.2")
PRIVATE = (
    "10.1.2.3",
    "172.31.0.9",
    "192.168.5.5",
    "100.64.1.1",
    "192.0.0.8",
    "198.18.0.1",
    "198.19.255.1",
    "240.0.0.9",
)
WEB = 80


def policy(mode: str, *allow: str) -> EgressPolicy:
    return EgressPolicy(mode=GuestEgress(mode), allow=tuple(map(parse_allowed, allow)))


@dataclass
class EgressWorld:
    """This thread's namespace is the host."""

    state_file: Path
    guests: dict[str, TapGuest]
    inside: dict[str, Remote]
    neighbour: Remote

    def traffic(
        self,
        of: EgressPolicy,
        *,
        host_ports: tuple[int, ...] = (),
        hairpin: bool = False,
    ) -> NftablesTraffic:
        return NftablesTraffic(
            BRIDGE,
            SUBNET,
            host_ports,
            state_file=self.state_file,
            egress=of,
            hairpin=hairpin,
        )

    def reached(self, *addresses: str, port: int = WEB) -> dict[str, str]:
        """What comes of blue's connections."""
        return {address: self.inside[BLUE].outcome(address, port) for address in addresses}

    def opened(self, *addresses: str, port: int = WEB) -> dict[str, str]:
        """The same of what is to be let through: a busy guest's first packets may take a while."""
        until = time.monotonic() + 30
        while True:
            found = self.reached(*addresses, port=port)
            if set(found.values()) == {"connected"} or time.monotonic() > until:
                return found


def network(
    of: EgressPolicy | None = None, host_ports: tuple[int, ...] = (), *, hairpin: bool = False
) -> TapNetwork:
    """With a policy the taps hold it themselves, as where the data plane is not nftables."""
    if of is None:
        return TapNetwork(BRIDGE, SUBNET, instance="egress", hairpin=hairpin)
    return TapNetwork(
        BRIDGE, SUBNET, instance="egress", gated=False, policy=of, host_ports=host_ports
    )


@contextlib.asynccontextmanager
async def egress_world(directory: Path, taps: TapNetwork) -> AsyncIterator[EgressWorld]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(own_host())
        neighbour = stack.enter_context(Remote())
        join(neighbour.pid, link="trtclient", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtclient")
        ip(f"route add default via {CLIENT}")
        for address in (INTERNET, LINK_LOCAL, *METADATA, *PRIVATE):
            ip(f"addr add {address}/32 dev lo", neighbour.pid)
        stack.enter_context(neighbour.server(WEB))
        await taps.start()
        guests, inside = {}, {}
        for name, address in (("blue", BLUE), ("green", GREEN)):
            nic = await taps.attach(ENCLAVES[address], address, PORTS)
            server = Server(name, address, PORTS, netns=True)
            stack.callback(server.stop)
            guest = TapGuest(
                server, link=nic.name, mac=nic.mac, cidr=f"{address}/24", gateway=GATEWAY
            )
            stack.callback(guest.close)
            server.listen()
            guests[address] = guest
            inside[address] = stack.enter_context(Remote(server.pid))
        yield EgressWorld(directory / "sysctls.json", guests, inside, neighbour)
