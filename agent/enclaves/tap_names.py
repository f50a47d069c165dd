"""What is ours among the host's links, told by marks that the kernel keeps. Pure.

No name alone makes a link ours. The bridge is told by its hardware address, given in the very call
that creates it, and by its alias; a tap by its alias, which also has its enclave's address. A tap
of ours without alias is one whose attaching was cut short, or whose alias somebody took away.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass

from agent.enclaves.links import NetLink
from agent.enclaves.network import NetworkError
from agent.model.ids import EnclaveId

_PREFIX = "enc-"
_TAP = re.compile(_PREFIX + r"[a-z2-7]{8}")


@dataclass(frozen=True, slots=True)
class Marks:
    """Of one agent's links. `mac`: the bridge's hardware address."""

    mark: str
    mac: str

    @classmethod
    def of(cls, instance: str) -> Marks:
        """`instance` tells the links of several agents on one host apart."""
        digest = hashlib.sha256(instance.encode()).digest()
        mac = ":".join(f"{byte:02x}" for byte in b"\x02\x01" + digest[:4])
        return cls(mark=f"enclave-agent {digest.hex()[:8]}", mac=mac)

    def is_our_bridge(self, link: NetLink) -> bool:
        return link.is_bridge and (link.address == self.mac or link.ifalias == self.mark)

    def bridges(self, links: Mapping[str, NetLink]) -> list[str]:
        """Those of ours, whatever they are called."""
        return sorted(name for name, link in links.items() if self.is_our_bridge(link))

    def taps(self, links: Mapping[str, NetLink]) -> list[NetLink]:
        return [
            link
            for name, link in sorted(links.items())
            if _TAP.fullmatch(name) and link.is_tap and self._is_marked(link)
        ]

    def addresses(self, links: Mapping[str, NetLink]) -> dict[str, str]:
        """Our taps with the addresses of their enclaves."""
        found = {tap.ifname: self.address_of(tap) for tap in self.taps(links)}
        return {name: address for name, address in found.items() if address is not None}

    def is_or_may_be_ours(self, link: NetLink) -> bool:
        return link.is_tap and (link.ifalias is None or self._is_marked(link))

    def serves(self, tap: NetLink, address: str) -> bool:
        """Whether it is this enclave's, and root's alone to open."""
        return tap.owner_uid is None and tap.ifalias == self.alias(address)

    def alias(self, address: str) -> str:
        """Of the tap of the enclave with this address."""
        return f"{self.mark} {address}"

    def address_of(self, tap: NetLink) -> str | None:
        """Its enclave's; None if it is not ours."""
        if not self._is_marked(tap):
            return None
        address = (tap.ifalias or "").rpartition(" ")[2]
        try:
            return str(ipaddress.IPv4Address(address))
        except ValueError:
            return None

    def _is_marked(self, tap: NetLink) -> bool:
        return tap.ifalias is not None and tap.ifalias.startswith(f"{self.mark} ")


def tap_name(enclave_id: EnclaveId) -> str:
    """Raises NetworkError for what cannot be an enclave's id."""
    name = f"{_PREFIX}{enclave_id}"
    if not _TAP.fullmatch(name):
        raise NetworkError(f"{enclave_id!r} is not an enclave's id")
    return name


def enclave_of(tap: str) -> EnclaveId:
    """Whose tap has this name."""
    return EnclaveId(tap.removeprefix(_PREFIX))


def may_be_a_tap(name: str) -> bool:
    return name.startswith(_PREFIX)
