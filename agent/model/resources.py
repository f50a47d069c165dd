"""Demand and capacity: what a revision needs and what a host has, as one vector."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Self

import msgspec

GUEST_HTTPS_PORT = 443


@lru_cache(maxsize=4096)
def _is_unspecified(address: str) -> bool:
    return ipaddress.ip_address(address).is_unspecified


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """A host address and TCP port that takes a deployment's connections."""

    address: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        return ":" in self.address

    @property
    def is_wildcard(self) -> bool:
        return _is_unspecified(self.address)

    def overlaps(self, other: Listen) -> bool:
        """Whether one connection could match both."""
        if self.port != other.port:
            return False
        if self.address == other.address or self.is_ipv6 != other.is_ipv6:
            return self.address == other.address
        return self.is_wildcard or other.is_wildcard

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `ADDR:PORT` or `[V6]:PORT`; ValueError names what is wrong."""
        host, colon, port = text.rpartition(":")
        if not colon:
            raise ValueError("must be ADDRESS:PORT")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ValueError("an IPv6 address must be in brackets: [ADDRESS]:PORT")
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is not an IP address") from None
        if getattr(address, "scope_id", None):
            raise ValueError("an address with a scope id cannot be published")
        return cls(address=str(address), port=parse_port(port))


def parse_port(text: str) -> int:
    """A TCP port, 1 to 65535, in plain ASCII digits."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise ValueError("the port must be 1 to 65535")
    return int(text)


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, order=True):
    """One more host listener, for a port of the guest other than 443."""

    listen: Listen
    guest_port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `ADDR:PORT:GUESTPORT`."""
        listen, colon, guest = text.rpartition(":")
        if not colon or ":" not in listen:
            raise ValueError("must be ADDRESS:PORT:GUESTPORT")
        return cls(listen=Listen.parse(listen), guest_port=parse_port(guest))


class Demand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one enclave of a revision takes from the host, besides its deployment's listeners.

    `tls_challenge`: `http` or `tls` where its certificate is proved at the deployment's public
    address, which therefore no other enclave may have while it boots; empty where it is not.
    """

    gpus: int = 0
    memory_mib: int
    vcpus: int
    tee_ids: int = 0
    addresses: int = 1
    disk_mib: int = 0
    writable_volumes: int = 0
    tls_challenge: str = ""


class Amounts(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Countable capacity. `gpus` here is a count; which ones is the inventory's to say."""

    gpus: int = 0
    memory_mib: int = 0
    vcpus: int = 0
    tee_ids: int = 0
    addresses: int = 0
    disk_mib: int = 0

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(
            gpus=self.gpus + other.gpus,
            memory_mib=self.memory_mib + other.memory_mib,
            vcpus=self.vcpus + other.vcpus,
            tee_ids=self.tee_ids + other.tee_ids,
            addresses=self.addresses + other.addresses,
            disk_mib=self.disk_mib + other.disk_mib,
        )

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(
            gpus=self.gpus - other.gpus,
            memory_mib=self.memory_mib - other.memory_mib,
            vcpus=self.vcpus - other.vcpus,
            tee_ids=self.tee_ids - other.tee_ids,
            addresses=self.addresses - other.addresses,
            disk_mib=self.disk_mib - other.disk_mib,
        )

    def at_least_zero(self) -> Amounts:
        """With zero for what is negative."""
        return Amounts(
            gpus=max(0, self.gpus),
            memory_mib=max(0, self.memory_mib),
            vcpus=max(0, self.vcpus),
            tee_ids=max(0, self.tee_ids),
            addresses=max(0, self.addresses),
            disk_mib=max(0, self.disk_mib),
        )
