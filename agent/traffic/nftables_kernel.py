"""Our table in the kernel: read whole, changed in one transaction, with the tool `nft`."""

from __future__ import annotations

import json

from agent.config import NetworkConfig
from agent.host.commands import CommandError, CompletedCommand, RunCommand
from agent.traffic.nftables_rules import Base
from agent.traffic.nftables_view import NftablesView, read
from agent.traffic.port import TrafficError

_PREFIX = "enclave_agent"
_STANDARD = NetworkConfig().bridge


class RefusedTransactionError(TrafficError):
    """The kernel does not hold what we took for granted, or cannot do what we ask."""


def table_of(bridge: str) -> str:
    """The name of the table for the guests of a bridge."""
    return _PREFIX if bridge == _STANDARD else f"{_PREFIX}_{bridge}"


def egress_table(table: str) -> str:
    """The name of the table of the egress policy beside it."""
    return f"egress_{table}"


def limits_table(table: str) -> str:
    """The name of the table of tenants' shares beside it."""
    return f"limits_{table}"


def has_to_do_with_agents(table: str) -> bool:
    """Whether it is an agent's table, or one beside it."""
    return is_agents(table.removeprefix("egress_").removeprefix("limits_"))


def is_agents(table: str) -> bool:
    """Whether a table has the name of an agent's, ours or not."""
    return table == _PREFIX or table.startswith(f"{_PREFIX}_")


def bridge_of(table: str) -> str:
    """The inverse of `table_of`."""
    return _STANDARD if table == _PREFIX else table.removeprefix(f"{_PREFIX}_")


class NftablesKernel:
    """All calls raise TrafficError when nft does not do its work."""

    def __init__(self, base: Base, run: RunCommand) -> None:
        self._base = base
        self._run = run
        self._parsed: tuple[bytes, NftablesView] | None = None  # a listing, and what it says

    async def look(self) -> NftablesView:
        """Without the second table the orders are known, and nothing is in force."""
        listings = [await self._list(*what) for what in self._base.listed]
        listing = b"".join(found for found in listings if found is not None)
        if listings[0] is None:
            return NftablesView()
        if self._parsed is None or self._parsed[0] != listing:
            self._parsed = (listing, read(listing, self._base))
        return self._parsed[1]

    async def tables(self) -> list[str]:
        """The names of all tables that look like an agent's, ours or not."""
        listed = await self._nft(["nft", "-j", "list", "tables"])
        if listed.status != 0:
            raise TrafficError(f"nft does not list tables: {listed.complaint}")
        rows = [item["table"] for item in json.loads(listed.stdout)["nftables"] if "table" in item]
        names = {str(row["name"]) for row in rows if row["family"] in ("inet", "bridge")}
        return sorted(filter(is_agents, names))

    async def commit(self, text: str) -> None:
        """One transaction; it may commit although its caller is cancelled."""
        result = await self._nft(["nft", "-f", "-"], stdin=text.encode())
        if result.status != 0:
            raise RefusedTransactionError(f"nft refused the transaction: {result.complaint}")

    async def _list(self, *what: str) -> bytes | None:
        """None if there is no such thing. (nft 1.0.6 cannot list two families in one run.)"""
        listing = await self._nft(["nft", "-j", "list", *what])
        if listing.status == 0:
            return listing.stdout
        if b"No such file or directory" in listing.stderr:
            return None
        raise TrafficError(f"nft does not list our table: {listing.complaint}")

    async def _nft(self, argv: list[str], stdin: bytes = b"") -> CompletedCommand:
        try:
            return await self._run(argv, stdin=stdin)
        except CommandError as error:
            raise TrafficError("nft did not do its work") from error
