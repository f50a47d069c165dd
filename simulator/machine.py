"""One simulated host in a directory: written, given a kernel, and taken away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from simulator import stand_in
from simulator.nvml import NAME, Nvml, compile_shim
from simulator.pci_kernel import install_tool
from simulator.profiles import PROFILES, Profile
from simulator.sysfs_tree import SysfsTree

ROOT = Path(__file__).resolve().parents[1]
_IDS = 99
_WAIT_S = 20.0
_OFF = {"cc": "off", "ppcie": "off", "cc_next": "off", "ppcie_next": "off"}


class SimulatedHostError(Exception):
    """The directory is somebody else's, or its kernel does not run. The text says what to do."""


class SimulatedMachine:
    """A directory. `keys` are the configuration's, in its section `host`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()
        self.sysfs, self.cgroup = self.directory / "sys", self.directory / "cgroup"
        self.nvml, self.tools = self.directory / "nvml", self.directory / "tools"
        self._marker, self.pid_file = self.directory / "profile", self.directory / "kernel.pid"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def keys(self) -> dict[str, str]:
        return {
            "sysfs_root": str(self.sysfs),
            "cgroup_root": str(self.cgroup),
            "nvml_library": str(self.nvml / NAME),
            "gpu_tools": str(self.tools / "nvidia_gpu_tools.py"),
        }

    @property
    def qemu(self) -> Path:
        """For the key `qemu.binary`: a QEMU whose guests get stand-ins for the devices."""
        return self.tools / "qemu-with-stand-ins"

    @property
    def profile(self) -> Profile | None:
        """Of the host that is here; None if there is none."""
        with contextlib.suppress(OSError):
            return PROFILES.get(self._marker.read_text().strip())
        return None

    def make(self, profile: Profile) -> None:
        """Write it anew, as after a reboot: no enclave may be running on it. Starts its kernel."""
        if self._marker.exists():
            self.stop()
            for path in (self.sysfs, self.cgroup, self.nvml, self.tools):
                shutil.rmtree(path, ignore_errors=True)
        elif self.directory.exists() and any(self.directory.iterdir()):
            raise SimulatedHostError(f"{self.directory} is not empty; name a directory to make")
        self.directory.mkdir(parents=True, exist_ok=True)
        self._marker.write_text("")  # ours, and not whole until it has a name
        for path in (self.sysfs, self.cgroup, self.nvml, self.tools):
            path.mkdir()
        tree = profile.tree(self.sysfs)
        for bdf, driver in profile.drivers(tree):
            tree.bind(bdf, driver)
        self._write_platform(profile)
        compile_shim(self.nvml / NAME)
        self.qemu.write_text(
            f"#!{os.path.realpath(sys.executable)} -IS\n{Path(stand_in.__file__).read_text()}"
        )
        self.qemu.chmod(0o755)
        install_tool(self.tools, {path.name: dict(_OFF) for path in tree.devices.iterdir()})
        self._marker.write_text(f"{profile.name}\n")
        self.start()

    def _write_platform(self, profile: Profile) -> None:
        """NUMA nodes that share this machine's memory, and the ids of confidential guests."""
        _put(self.sysfs / "module" / profile.switch, "Y")
        _put(self.cgroup / "misc.capacity", f"{profile.row} {_IDS}")
        _put(self.cgroup / "misc.current", f"{profile.row} 0")
        pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        for node in range(profile.nodes):
            folder = self.sysfs / f"devices/system/node/node{node}"
            near = ("10" if other == node else "21" for other in range(profile.nodes))
            _put(folder / "distance", " ".join(near))
            kib = pages * page // profile.nodes >> 10
            _put(folder / "meminfo", f"Node {node} MemTotal:  {kib} kB")

    def scenario(self) -> tuple[SysfsTree, Nvml]:
        """The tree and the library, as the kernel process changes them."""
        return SysfsTree(self.sysfs), Nvml(self.nvml)

    def start(self) -> None:
        """Have its kernel running: binds, unbinds and resets do something until it is stopped."""
        if self.pid() is not None:
            return
        self.pid_file.unlink(missing_ok=True)
        with (self.directory / "kernel.log").open("ab") as log:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "simulator.kernel", str(self.directory)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + _WAIT_S
        while not self.pid_file.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise SimulatedHostError(f"its kernel does not start; see {log.name}")
            time.sleep(0.02)

    def pid(self) -> int | None:
        """Of its kernel, if that runs and is that very one."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(self.pid_file.read_text())
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if os.fsencode(self.directory) in argv:
                return pid
        return None

    def stop(self) -> None:
        """End its kernel; what was written stays, and does nothing any more."""
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        until = time.monotonic() + _WAIT_S
        while self.pid() is not None:
            if time.monotonic() > until:
                raise SimulatedHostError(f"its kernel, process {pid}, does not end; kill it")
            time.sleep(0.02)
        if self._process is not None:
            self._process.wait(_WAIT_S)


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")
