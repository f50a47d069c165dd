"""Of whom a line of the kernel's log speaks, by an address that may lack its ends. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Self

from agent.inventory.finding import Finding
from agent.model.gpu import HealthAction, Severity, Sight
from agent.model.ids import Bdf
from agent.model.pci import PciFunction

# With or without domain and function, as the speakers write it.
ADDRESS = r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}(?:\.[0-7])?"
_PARTS = re.compile(
    r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})(?:\.([0-7]))?", re.IGNORECASE
)
_LONGEST = 200


class Address(NamedTuple):
    """A PCI address. None: not told, which any is."""

    domain: int | None
    bus: int
    device: int
    function: int | None

    @classmethod
    def of(cls, text: str) -> Self | None:
        """None for what is no address."""
        found = _PARTS.fullmatch(text)
        if found is None:
            return None
        domain, bus, device, function = found.groups()
        return cls(
            domain=None if domain is None else int(domain, 16),
            bus=int(bus, 16),
            device=int(device, 16),
            function=None if function is None else int(function),
        )

    @classmethod
    def of_requester(cls, number: int) -> Self | None:
        """From a requester's id, 16 bits; None for 0 and all ones, which name nobody."""
        if number in (0, 0xFFFF):
            return None
        return cls(domain=None, bus=number >> 8, device=number >> 3 & 0x1F, function=number & 7)

    def is_of(self, bdf: Bdf, *, any_function: bool = False) -> bool:
        """Whether it may be that function's; `any_function`: or another's of its card."""
        other = Address.of(bdf)
        if other is None or (self.bus, self.device) != (other.bus, other.device):
            return False
        if self.domain is not None and self.domain != other.domain:
            return False
        return any_function or self.function in (None, other.function)


@dataclass(frozen=True, slots=True)
class Said:
    """`address` None: of all devices, or of all that `driver` has."""

    finding: Finding
    address: Address | None = None
    driver: str | None = None

    def is_about(self, function: PciFunction) -> bool:
        """Whether the device, its card or a port above it is meant."""
        if self.driver is not None and function.driver != self.driver:
            return False
        if self.address is None:
            return True
        if self.address.is_of(function.bdf, any_function=True):
            return True
        return any(self.address.is_of(port) for port in function.ports)


def finding(code: str, severity: Severity, action: HealthAction, text: str) -> Finding:
    """A finding in the kernel's own words."""
    return Finding(code, severity, action, f"the kernel says: {text[:_LONGEST]}", Sight.PCI)
