"""The kernel's limits on flows: has their table in force, and reads what it refused.

Whatever goes wrong here, connections are carried all the same: what is not limited then is told
(`missing`), and tried again at every look.
"""

from __future__ import annotations

import logging
from pathlib import Path

from agent.config_limits import LimitsConfig
from agent.errors import describe
from agent.host.commands import CommandError, RunCommand
from agent.host.nftables_netlink import rule_comments, ruleset_generation
from agent.traffic.flow_limits_rules import LimitsTable, refused_in
from agent.traffic.limits import limits_within
from agent.traffic.port import TrafficError

_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_SMALLEST_MAX = 65536  # the kernel's own for 1 GiB of memory; until it says what it has
_log = logging.getLogger(__name__)


class FlowLimits:
    """`table`: its name. `missing`: why nothing is limited, or None."""

    def __init__(
        self, table: str, bridge: str, subnet: str, config: LimitsConfig, run: RunCommand
    ) -> None:
        self._name = table
        self._bridge = bridge
        self._subnet = subnet
        self._config = config
        self._run = run
        self._seen: tuple[int, LimitsTable] | None = None  # in force at that generation
        self.missing: str | None = None

    async def ensure(self) -> None:
        """Make the table anew unless it is as it should be; only that starts a process."""
        wanted = self._wanted()
        before = ruleset_generation()
        if before is not None and self._seen == (before, wanted):
            return
        try:
            if not _holds(wanted):
                await self._write(wanted.text())
                before = None  # ours was not the only transaction, maybe: look once more
            self._tell(None)
        except TrafficError as error:
            before = None
            self._tell(describe(error))
        self._seen = (before, wanted) if before is not None else None

    async def refused(self) -> dict[str, dict[str, int]]:
        """Guest's address → limit → packets refused since the table was made.

        Raises TrafficError.
        """
        if self.missing is not None:
            return {}
        try:
            return refused_in(await self._nft("-j", "list", "set", "inet", self._name, "refused"))
        except _NoSuchTableError:
            return {}  # somebody took it away: the next look makes it anew

    async def remove(self) -> None:
        """Raises TrafficError."""
        self._seen = None
        await self._write(self._wanted().removal())

    def _wanted(self) -> LimitsTable:
        limits = limits_within(self._config, _capacity())
        return LimitsTable(self._name, self._bridge, self._subnet, limits)

    async def _write(self, text: str) -> None:
        await self._nft("-f", "-", stdin=text)

    async def _nft(self, *arguments: str, stdin: str = "") -> bytes:
        try:
            done = await self._run(["nft", *arguments], stdin=stdin.encode())
        except CommandError as error:
            raise TrafficError("nft did not do its work") from error
        if done.status == 0:
            return done.stdout
        if b"No such file or directory" in done.stderr:
            raise _NoSuchTableError
        raise TrafficError(f"nft refused the table of limits: {done.complaint}")

    def _tell(self, missing: str | None) -> None:
        if missing is not None and missing != self.missing:
            _log.warning("guests' flows are not limited reason=%s", missing)
        self.missing = missing


class _NoSuchTableError(TrafficError):
    """It is not there."""


def _holds(wanted: LimitsTable) -> bool:
    try:
        return sorted(wanted.comments, key=str) == sorted(rule_comments(wanted.name), key=str)
    except OSError as error:
        raise TrafficError("the kernel does not list the limits' rules") from error


def _capacity() -> int:
    """How many flows the kernel's table takes, all together."""
    try:
        return int(_MAX.read_text())
    except (OSError, ValueError):
        return _SMALLEST_MAX
