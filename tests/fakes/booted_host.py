"""A host of its own in a container, where systemd boots as on a machine; its network is its own.

The container's /usr is this machine's, read-only, so that nothing is downloaded and what is tried
are the very programs that are installed; /etc is a copy of the little that they read, and /var and
the rest are empty. Nothing registers with this machine's own systemd, if it has one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.leftovers import place_on_disk

CHECKOUT = Path(__file__).resolve().parent.parent.parent
INSIDE = Path("/srv/checkout")  # where no sandbox hides it
_ETC = (
    "alternatives",
    "group",
    "gshadow",
    "haproxy",
    "iproute2",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "protocols",
    "python3",
    "python3.11",
    "services",
    "shadow",
    "ssl",
)
_EMPTY = ("dev", "etc", "proc", "root", "run", "sys", "tmp", "usr", "var/lib", "var/log/journal")
# What a container has no need of, or cannot have.
_MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "haproxy.service",
    "man-db.timer",
    "systemd-firstboot.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
)


@dataclass
class BootedHost:
    """`inside`: further directories of this machine, with where it sees them, read-only."""

    inside: Mapping[Path, Path] = field(default_factory=dict)
    home: Path = field(default_factory=lambda: place_on_disk("host."))
    process: subprocess.Popen[bytes] | None = None
    leader: int = 0

    def __post_init__(self) -> None:
        self.root = self.home / "root"
        self.console = self.home / "console"
        self.root.mkdir()
        (self.home / "local").mkdir(mode=0o755)
        for name in _EMPTY:
            (self.root / name).mkdir(parents=True, mode=0o755)
        for name in ("bin", "sbin", "lib", "lib64"):
            (self.root / name).symlink_to(f"usr/{name}")
        etc = self.root / "etc"
        for name in _ETC:
            source = Path("/etc") / name
            if source.is_dir():
                shutil.copytree(source, etc / name, symlinks=True)
            elif source.exists():
                shutil.copy2(source, etc / name)
        (etc / "machine-id").write_text("d" * 32 + "\n")
        (etc / "hostname").write_text("booted-host\n")
        (etc / "hosts").write_text("127.0.0.1 localhost booted-host\n")
        (self.root / "var/run").symlink_to("/run")
        units = etc / "systemd/system"
        units.mkdir(parents=True)
        (units / "default.target").symlink_to("/lib/systemd/system/multi-user.target")
        for name in _MASKED:
            (units / name).symlink_to("/dev/null")

    # --- life ----------------------------------------------------------------------------------

    def boot(self, timeout_s: float = 60) -> float:
        """Seconds until it is up."""
        began = time.monotonic()
        seen = {Path("/usr"): Path("/usr"), CHECKOUT: INSIDE, **self.inside}
        binds = [f"--bind-ro={here}:{there}" for here, there in seen.items()]
        binds.append(f"--bind={self.home}/local:/usr/local")
        with self.console.open("ab") as console:
            self.process = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
                    *(f"--directory={self.root}", "--machine=booted-host", "--private-network"),
                    *("--link-journal=no", "--resolv-conf=off", "--timezone=off"),
                    *("--console=pipe", "--capability=CAP_BPF,CAP_SYS_RESOURCE"),
                    *("--system-call-filter=bpf pidfd_getfd", "--bind=/dev/net/tun", *binds),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
        while time.monotonic() - began < timeout_s:
            if self.process.poll() is not None:
                break
            self.leader = self.leader or _child_of(self.process.pid)
            if self.leader:
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    return time.monotonic() - began
            time.sleep(0.1)
        raise AssertionError(f"the container did not boot:\n{self.console_tail()}")

    def power_off(self, timeout_s: float = 90) -> float:
        """As an operator would; returns the seconds that it took."""
        assert self.process is not None
        began = time.monotonic()
        self.run("systemctl", "poweroff", "--no-block")
        self.process.wait(timeout_s)
        self.leader = 0
        return time.monotonic() - began

    def leave(self) -> None:
        """Nothing of it stays. Idempotent."""
        if self.process is not None and self.process.poll() is None:
            if self.leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.leader, signal.SIGKILL)  # with it goes all that it started
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    # --- asking --------------------------------------------------------------------------------

    def enter(self, *argv: str) -> list[str]:
        """The command line that runs a command inside."""
        name = ("-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w")
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        return ["nsenter", *name, "env", "-i", path, "LANG=C.UTF-8", "HOME=/root", *argv]

    def run(
        self, *argv: str, check: bool = True, timeout_s: float = 120, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.enter(*argv),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}{done.stderr}\n"
                f"{self.console_tail(2000)}"
            )
        return done

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        names = ",".join(properties)
        text = self.run("systemctl", "show", unit, f"--property={names}").stdout
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def units(self, pattern: str) -> list[str]:
        """The units that are active, by name."""
        text = self.run(
            *("systemctl", "list-units", "--plain", "--no-legend", "--state=active", pattern)
        ).stdout
        return [line.split()[0] for line in text.splitlines() if line.strip()]

    def journal(self, *words: str) -> str:
        """Of this boot or, once it is down, of all that it wrote."""
        if self.leader:
            return self.run("journalctl", "--no-pager", *words).stdout
        where = f"--directory={self.root}/var/log/journal"
        return subprocess.run(
            ["journalctl", "--no-pager", where, *words], capture_output=True, text=True, check=True
        ).stdout

    def console_tail(self, max_chars: int = 6000) -> str:
        return self.console.read_text(errors="replace")[-max_chars:]


def _child_of(pid: int) -> int:
    """The container's first process; 0 until there is one."""
    with contextlib.suppress(OSError, ValueError):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            status = Path(f"/proc/{child}/status").read_text()
            inner = next(line for line in status.splitlines() if line.startswith("NSpid:"))
            if inner.split()[-1] == "1":
                return int(child)
    return 0


def missing() -> Sequence[str]:
    """The programs that a booted host takes, and that are not here."""
    return [name for name in ("systemd-nspawn", "nsenter") if shutil.which(name) is None]
