"""The kernel switches that the nftables data plane needs, and the way back.

Where the host forwards for others (`conf.all.forwarding`), there is nothing to turn. Where it does
not, only the guests' bridge and the links by which clients come are let forward, each by its own
switch; the data plane fences the latter, so that the host becomes a router for nobody else.

Invariant: before a switch is turned, its value is on disk; so an uninstall restores it however
often the agent was killed in between. Source: the kernel's ip-sysctl documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from agent.host.files import FileAbsentError, StorageError, read_bounded, write_atomic
from agent.host.process import boot_id
from agent.traffic.uplinks import uplinks

_IPV4 = Path("/proc/sys/net/ipv4")
_ALL = _IPV4 / "conf/all/forwarding"
_MAX_BYTES = 1 << 20


class _Recorded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values before us. A switch lives as long as the boot, so a record of another one is void."""

    boot_id: str
    before: dict[str, str]


@dataclass(frozen=True, slots=True)
class Switches:
    """What is and what is to be. `fenced`: links that forward for our sake alone."""

    routes_for_others: bool
    on: frozenset[str]  # links that must forward, and do
    off: frozenset[str]  # those that do not
    fenced: frozenset[str]


class Sysctls:
    """IPv4 forwarding, and loopback addresses on the guests' bridge."""

    def __init__(self, bridge: str, state_file: Path) -> None:
        self._bridge = bridge
        self._localnet = _IPV4 / "conf" / bridge / "route_localnet"
        self._state_file = state_file

    def look(self) -> Switches:
        """Cheap, and changes nothing. A missing bridge is left for later. Raises OSError."""
        if _value(_ALL) == "1":
            return Switches(True, frozenset(), frozenset(), frozenset())
        needed = uplinks(self._bridge)
        now = {name: _value(_forwarding(name)) for name in (*needed, self._bridge)}
        on = frozenset(name for name, value in now.items() if value == "1")
        off = frozenset(name for name, value in now.items() if value == "0")
        before = self._recorded()
        ours = {name for name in needed if before.get(str(_forwarding(name))) == "0"}
        return Switches(False, on, off, frozenset(ours | off) - {self._bridge})

    def turn_on(self, off: frozenset[str]) -> None:
        """Have these links forward, and loopback addresses on the bridge.

        Links that are gone by now are passed over. Raises OSError, StorageError.
        """
        for path in (*map(_forwarding, sorted(off)), self._localnet):
            if _value(path) == "0":
                self._record(path)
                path.write_text("1")

    def restore(self) -> None:
        """Put back what was recorded, and forget it. Interfaces that are gone are passed over.

        Where somebody else has the host forward by now, links go on forwarding for their sake.
        """
        recorded = self._recorded()
        all_ours = str(_IPV4 / "ip_forward") in recorded  # turned by an earlier version
        theirs = _value(_ALL) == "1" and not all_ours
        # ip_forward first: writing it rewrites the others.
        for name in sorted(recorded, key=lambda path: not path.endswith("/ip_forward")):
            path = Path(name)
            kept = theirs and path.name == "forwarding"
            if not kept and _value(path) not in (None, recorded[name]):
                path.write_text(recorded[name])
        self._state_file.unlink(missing_ok=True)

    def _recorded(self) -> dict[str, str]:
        try:
            data = read_bounded(self._state_file, _MAX_BYTES)
            recorded = msgspec.json.decode(data, type=_Recorded)
        except FileAbsentError:
            return {}
        except msgspec.MsgspecError as error:
            raise StorageError(f"{self._state_file} is not a record of sysctls") from error
        return recorded.before if recorded.boot_id == boot_id() else {}

    def _record(self, path: Path) -> None:
        """Durably note a value; what was noted earlier in this boot is older, so it stays."""
        value = _value(path)
        before = self._recorded()
        if value is None or str(path) in before:
            return
        record = _Recorded(boot_id=boot_id(), before={str(path): value, **before})
        write_atomic(self._state_file, msgspec.json.encode(record))


def _forwarding(name: str) -> Path:
    """A link's own switch. In the path a dot of its name stays one."""
    return _IPV4 / "conf" / name / "forwarding"


def _value(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None
