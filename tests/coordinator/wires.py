"""Network namespaces for agents, each joined to the coordinator's by one link that can be cut."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.netns import ip

WAYS = ("to", "from", "both")  # what a cut keeps from the agent, or from the coordinator
_LINK = "eacoord"


@dataclass(frozen=True)
class Wire:
    """The link between the two: the coordinator is at `ours`, the agent at `theirs`."""

    pid: int
    ours: str
    theirs: str

    @property
    def enter(self) -> tuple[str, ...]:
        """What runs a command at the agent's end; it becomes that command."""
        return ("nsenter", "-t", str(self.pid), "-n")

    def cut(self, way: str) -> None:
        """Drop what goes one way, or both, without a word to either."""
        hooks = {"to": ["input"], "from": ["output"], "both": ["input", "output"]}[way]
        rules = "add table inet cut\n"
        for hook in hooks:
            rules += f"add chain inet cut {hook} {{ type filter hook {hook} priority 0; }}\n"
            side = "iifname" if hook == "input" else "oifname"
            rules += f'add rule inet cut {hook} {side} "eth0" drop\n'
        self._nft(rules)

    def heal(self) -> None:
        self._nft("delete table inet cut\n")

    def _nft(self, rules: str) -> None:
        subprocess.run([*self.enter, "nft", "-f", "-"], input=rules, text=True, check=True)


@contextlib.contextmanager
def elsewhere(number: int = 0) -> Iterator[Wire]:
    """A namespace with `lo` and `eth0`. Those with different numbers may be there at once."""
    link = f"{_LINK}{number}"
    ours, theirs = (f"10.214.77.{4 * number + end}" for end in (1, 2))
    with subprocess.Popen(["unshare", "--net", "sleep", "86400"]) as holder:
        try:
            own = Path("/proc/self/ns/net").readlink()
            while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
                pass
            ip(f"link add {link} type veth peer name eth0 netns {holder.pid}")
            ip(f"addr add {ours}/30 dev {link}")
            ip(f"link set {link} up")
            ip("link set lo up", holder.pid)
            ip(f"addr add {theirs}/30 dev eth0", holder.pid)
            ip("link set eth0 up", holder.pid)
            yield Wire(holder.pid, ours, theirs)
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip(f"link delete {link}")  # a namespace ends some time after its last process
            holder.kill()
