"""The doctor's lines about confidential launches: QEMU, firmware, quotes, locked memory.

QEMU is started without a machine and asked what it can do; no guest runs.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line

if TYPE_CHECKING:
    from agent.config import Config, Tee


def tee_lines(config: Config) -> list[Line]:
    """Of a host whose enclaves are to be confidential; none of another."""
    from agent.config import Tee

    if config.tee not in (Tee.SEV_SNP, Tee.TDX):
        return []
    lines = [_able(config, config.tee), _locked_memory(config)]
    if config.tee is Tee.TDX:
        return [*lines, *_tdx(config)]
    from agent.cli.doctor_snp import snp_lines

    return [*lines, *snp_lines(config)]


def _able(config: Config, tee: Tee) -> Line:
    from agent.config import Tee as Kind
    from agent.enclaves.capabilities import lacks
    from agent.enclaves.qemu_probe import QemuProbe, QemuProbeError
    from agent.errors import describe

    what = f"qemu for {tee}"
    with tempfile.TemporaryDirectory() as place:
        probe = QemuProbe(
            binary=config.qemu.binary,
            user=None,
            state_dir=Path(place),
            run_dir=Path(place),
            sev=tee is Kind.SEV_SNP,
        )
        try:
            found = asyncio.run(probe.capabilities())
        except QemuProbeError as error:
            return Line(what, "error", describe(error), "set qemu.binary")
    shown = ".".join(map(str, found.version))
    if told := lacks(found, tee, devices=_has_gpus(config)):
        mend = "docs/hardware.md says what is needed and how to enable it"
        return Line(what, "error", f"{shown}: {'; '.join(told)}", mend)
    sev = f", C-bit {found.sev.cbitpos}" if found.sev else ""
    return Line(what, "ok", f"{shown} has all that is given to it{sev}")


def _has_gpus(config: Config) -> bool:
    """Whether guests of this host may be given some; of a bus that cannot be read, yes."""
    from agent.inventory.host import InventoryError
    from agent.inventory.pci import PciReader

    try:
        return any(one.kind == "gpu" for one in PciReader(config.host.sysfs_root).read())
    except InventoryError:
        return True


def _locked_memory(config: Config) -> Line:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        return Line("locked memory", "ok", "unlimited here; the daemon's unit must say so too")
    return Line(
        "locked memory",
        "warn",
        f"{soft >> 20} MiB here: a guest with GPUs is locked whole",
        "LimitMEMLOCK=infinity in the daemon's unit",
    )


def _tdx(config: Config) -> Iterator[Line]:
    from agent.enclaves.quotes import quotes_fault, read_quote_service

    fault = asyncio.run(quotes_fault(read_quote_service(config.qemu.quote_service)))
    if fault is None:
        yield Line("quotes", "ok", f"{config.qemu.quote_service} takes connections")
    else:
        mend = "start the quote generation service (qgsd), or set qemu.quote_service"
        yield Line("quotes", "error", fault, mend)
    firmware = config.qemu.tdx_firmware
    if firmware is None or not firmware.is_file():
        found = f"{firmware} is not there" if firmware else "qemu.tdx_firmware is not set"
        yield Line("tdx firmware", "error", found, "name the OVMF that trust domains boot")
    else:
        yield Line("tdx firmware", "ok", str(firmware))
    if not config.attestation.tdx.platforms:
        mend = "list the MRTD and RTMR0 of that firmware on that machine"
        yield Line("tdx platforms", "error", "attestation.tdx.platforms is empty: no Ready", mend)
