"""The kernel switches that the nftables data plane needs, and the way back.

Invariant: before a switch is turned, its value and those that the kernel turns along with it are
on disk; so an uninstall restores them however often the agent was killed in between.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.host.files import FileAbsentError, StorageError, read_bounded, write_atomic
from agent.host.process import boot_id

_IPV4 = Path("/proc/sys/net/ipv4")
_MAX_BYTES = 1 << 20


class _Recorded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Values before us. A switch lives as long as the boot, so a record of another one is void."""

    boot_id: str
    before: dict[str, str]


class Sysctls:
    """IPv4 forwarding, and loopback addresses on the guests' bridge."""

    def __init__(self, bridge: str, state_file: Path) -> None:
        self._localnet = _IPV4 / "conf" / bridge / "route_localnet"
        self._state_file = state_file

    def ensure(self) -> None:
        """Turn on what is off; cheap when all is on. A missing bridge is left for later.

        Raises OSError, StorageError.
        """
        forward = _IPV4 / "ip_forward"
        if _value(forward) != "1":
            # The kernel turns every interface's own switch along with the common one.
            along = sorted(_IPV4.glob("conf/*/forwarding"))
            self._record([forward, *along, _IPV4 / "conf/all/accept_redirects"])
            forward.write_text("1")
        if _value(self._localnet) == "0":
            self._record([self._localnet])
            self._localnet.write_text("1")

    def restore(self) -> None:
        """Put back what was recorded, and forget it. Interfaces that are gone are passed over."""
        recorded = self._recorded()
        # ip_forward first: writing it rewrites the others.
        for name in sorted(recorded, key=lambda path: not path.endswith("/ip_forward")):
            path = Path(name)
            if _value(path) not in (None, recorded[name]):
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

    def _record(self, paths: list[Path]) -> None:
        """Durably note values; what was noted earlier in this boot is older, so it stays."""
        now = {str(path): value for path in paths if (value := _value(path)) is not None}
        before = {**now, **self._recorded()}
        record = _Recorded(boot_id=boot_id(), before=before)
        write_atomic(self._state_file, msgspec.json.encode(record))


def _value(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return None
