"""`enclave-agent doctor`: what this host can and cannot do, line by line, with the mend.

It looks and starts nothing of its own but queries of what a program is and can do (taps are tried
in a network namespace that ends with the trial): that KVM really runs a guest is proved by the
daemon, which then says so in its status.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.doctor_cage import cage_line, cage_proved
from agent.cli.doctor_egress import egress_line
from agent.cli.doctor_line import Line
from agent.cli.doctor_outside import outside_line
from agent.cli.doctor_places import ports_line, run_dir_line, source_line, state_dir_line
from agent.cli.doctor_rules import rules_line
from agent.cli.doctor_taps import tap_line
from agent.cli.exits import Exit
from agent.cli.options import Output, output
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.config import Config

BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_TIMEOUT_S = 10
_MIN_MEMORY_MIB = 4096


@click.command()
@click.option(
    "--here", is_flag=True, help="Look with the rights of this command, not with the agent's."
)
@click.option(
    "--prove-cage",
    is_flag=True,
    help="Run a tiny guest in a VM's cage (as root), and record that it ran.",
)
@output
def doctor(output: Output, *, here: bool, prove_cage: bool) -> None:
    """Say what this host can and cannot do.

    The agent that runs is asked, since what counts is what it may do, and whether what it has
    could be launched now. Where none runs, this command looks by itself.

    With --prove-cage a guest is run in a cage as a VM has it, with the devices of this host's TEE.
    Where the TEE is a real one, VMs are caged only after that, of this QEMU and kernel.

    Exit codes: 0 nothing is in the way; 1 an error is among the lines.
    """
    from agent.cli.screen import show_json, show_json_lines

    lines = lines_here(prove_cage=prove_cage) if here or prove_cage else _lines()
    if output.form == "json":
        show_json(lines)
    elif output.by_line:
        show_json_lines(lines)
    else:
        _show(lines, output)
    if any(line.state == "error" for line in lines):
        raise click.exceptions.Exit(Exit.FAILED)


def _lines() -> list[Line]:
    """Of the agent that runs, or of this command where none answers."""
    from agent.cli.doctor_of_agent import lines_of_agent

    told = lines_of_agent(session().client())
    if not isinstance(told, str):
        return [Line("agent", "ok", "runs; this is what it sees, with its rights"), *told]
    mine = f"{told}: this is what user {os.geteuid()} sees"
    return [Line("agent", "warn", mine, "start it, and ask again"), *lines_here()]


def lines_here(*, prove_cage: bool = False) -> list[Line]:
    """What this process sees, with its own rights."""
    from agent.cli.check_config import load
    from agent.cli.doctor_gpus import gpu_lines
    from agent.cli.doctor_tee import tee_lines

    path = session().config_path
    config = load(path)
    return [
        Line("config", "ok", str(path) if path else "none; every setting is its default"),
        *(check(config) for check in CHECKS),
        cage_proved(config) if prove_cage else cage_line(config),
        *tee_lines(config),
        *gpu_lines(config),
    ]


def _show(lines: list[Line], output: Output) -> None:
    from agent.cli.screen import show, table, word
    from agent.cli.tables import Column, prose
    from agent.cli.text import safe

    rows = table(Column("WHAT"), Column("STATE"), prose("FOUND"))
    for line in lines:
        remedy = f"; remedy: {line.mend}" if line.mend else ""
        rows.add_row(line.what, word(line.state), safe(f"{line.detail}{remedy}"))
    show(rows, output)


def _qemu(config: Config) -> Line:
    binary = shutil.which(config.qemu.binary)
    if binary is None:
        return Line(
            "qemu",
            "error",
            f"{config.qemu.binary} is not there",
            "apt-get install qemu-system-x86, or set qemu.binary",
        )
    return Line("qemu", "ok", f"{_first_line([binary, '--version'])} ({binary})")


def _kvm(config: Config) -> Line:
    device = Path("/dev/kvm")
    if not device.exists():
        return Line(
            "kvm",
            "warn",
            "/dev/kvm is not there; guests run slowly, in emulation (tcg)",
            "enable virtualization in the firmware and load kvm_amd or kvm_intel",
        )
    if not os.access(device, os.R_OK | os.W_OK):
        return Line(
            "kvm", "warn", "/dev/kvm may not be used", "join the group kvm, or run as root"
        )
    return Line("kvm", "ok", "/dev/kvm may be used; the daemon proves once that it runs a guest")


def _tee(config: Config) -> Line:
    from agent.config import SIMULATED, Tee

    if config.tee is Tee.SIMULATED:
        return Line(
            "tee",
            "warn",
            f"{SIMULATED}: the agent plays the secure processor itself (tee: simulated)",
            "for trials only; serve from a host with SEV-SNP or TDX",
        )
    found = [
        name
        for name, path in (
            ("sev-snp", "module/kvm_amd/parameters/sev_snp"),
            ("tdx", "module/kvm_intel/parameters/tdx"),
        )
        if _reads_yes(config.host.sysfs_root / path)
    ]
    if found:
        return Line("tee", "ok", f"{', '.join(found)} on in the kernel")
    return Line(
        "tee",
        "warn",
        f"neither SEV-SNP nor TDX is on in this kernel (configured: tee: {config.tee})",
        "use a host with one of them; for trials tee: simulated, "
        "or tee: none with allow_unattested: true",
    )


def _firmware(config: Config) -> Line:
    from agent.config import Tee

    directory = config.qemu.firmware_dir
    if config.tee is Tee.NONE:
        return Line("firmware", "ok", "plain VMs boot QEMU's own")
    if any(directory.glob("*")):
        return Line("firmware", "ok", f"{directory}; releases name theirs by its SHA-256")
    return Line(
        "firmware",
        "warn",
        f"qemu.firmware_dir has none: {directory}",
        "put the OVMF of your releases there; scripts/fetch-firmware finds one",
    )


def _nft(config: Config) -> Line:
    binary = shutil.which("nft") or shutil.which("nft", path="/usr/sbin:/sbin")
    if binary is None:
        return Line(
            "traffic", "warn", "nft is not there; the userspace data plane is used", _NFT_MEND
        )
    if os.geteuid() != 0:
        return Line("traffic", "warn", "not root: the userspace data plane is used", "run as root")
    done = _run([binary, "list", "tables"])
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or ["it fails"])[0]
        return Line("traffic", "warn", f"nft: {said}", "load nf_tables; grant CAP_NET_ADMIN")
    return Line("traffic", "ok", _first_line([binary, "--version"]))


_NFT_MEND = "apt-get install nftables"


def _haproxy(config: Config) -> Line:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    binary = shutil.which("haproxy", path=path)
    if binary is not None:
        return Line("haproxy", "ok", f"{_first_line([binary, '-v'])} ({binary})")
    if config.traffic.mode == "haproxy":
        return Line("haproxy", "error", "haproxy is not there", "apt-get install haproxy")
    return Line("haproxy", "ok", "not there, and not needed: traffic.mode is another")


def _memory(config: Config) -> Line:
    sizes = {}
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        sizes[name] = int(rest.split()[0]) // 1024
    available, total = sizes["MemAvailable"], sizes["MemTotal"]
    left = available - config.reserve.memory_mib
    detail = f"{available} of {total} MiB available, {config.reserve.memory_mib} MiB kept back"
    if left < _MIN_MEMORY_MIB:
        return Line(
            "memory", "warn", f"{detail}: {max(0, left)} MiB for enclaves", "reserve.memory_mib"
        )
    return Line("memory", "ok", detail)


def _swap(config: Config) -> Line:
    active = len(Path("/proc/swaps").read_text(encoding="ascii").splitlines()) - 1
    if active > 0:
        return Line(
            "swap", "warn", f"{active} swap areas: secrets could reach a disk", "swapoff -a"
        )
    return Line("swap", "ok", "none")


def _secrets(config: Config) -> Line:
    if config.secrets.at_rest == "off":
        return Line("secrets", "ok", "in memory only: after a reboot they are supplied again")
    from agent.host.credentials import PROGRAM, why_none

    lacks = why_none()
    if lacks is not None:
        mend = "install systemd 250 or later, or set secrets.at_rest: off"
        return Line("secrets", "error", f"{lacks}: none can be kept at rest", mend)
    if os.geteuid() != 0:
        return Line("secrets", "warn", "not root: the host's key may not be read", "run as root")
    tpm = _run([PROGRAM, "has-tpm2", "--quiet"]).returncode == 0
    key = "the host's key and TPM" if tpm else "the host's key, which is on its disk (no TPM)"
    version = _first_line([PROGRAM, "--version"])
    return Line("secrets", "ok", f"{version}: kept at rest, encrypted with {key}")


def _systemd(config: Config) -> Line:
    detached = "VMs run in sessions of their own"
    if config.supervisor == "detached":
        return Line("supervisor", "ok", f"configured: {detached}")
    wanted = "error" if config.supervisor == "systemd" else "warn"
    if not BOOTED.is_dir():
        return Line("supervisor", wanted, f"no systemd: {detached}", "set supervisor: detached")
    if os.geteuid() != 0:
        mend = "install the service with scripts/install"
        return Line("supervisor", wanted, f"not root: {detached}", mend)
    version = _first_line(["systemd-run", "--version"])
    return Line("supervisor", "ok", f"{version}: each VM is a unit with a user of its own")


def _sysfs(config: Config) -> Line:
    root = config.host.sysfs_root
    drivers = root / "bus/pci/drivers"
    if not drivers.exists() or os.access(drivers, os.W_OK) or os.geteuid() != 0:
        return Line("sysfs", "ok", f"{root} is there")
    return Line(
        "sysfs",
        "warn",
        f"{root} is read-only: GPUs are seen, and cannot be prepared for enclaves",
        "run the agent on the host itself, or mount sysfs writable where it runs",
    )


CHECKS: tuple[Callable[[Config], Line], ...] = (
    _qemu,
    _kvm,
    _tee,
    _firmware,
    tap_line,
    egress_line,
    _nft,
    rules_line,
    outside_line,
    _haproxy,
    _systemd,
    _sysfs,
    _memory,
    _swap,
    state_dir_line,
    run_dir_line,
    _secrets,
    ports_line,
    source_line,
)


def _reads_yes(path: Path) -> bool:
    try:
        return path.read_text(encoding="ascii").strip() in {"Y", "1"}
    except OSError:
        return False


def _first_line(argv: list[str]) -> str:
    done = _run(argv)
    return (done.stdout.strip().splitlines() or ["says nothing"])[0]


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """A tool's answer; one that fails or hangs answers with an error."""
    try:
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(argv, 1, "", str(error))
