"""The doctor's lines about a SEV-SNP host: whether its guests' evidence would be good enough.

Told before a tenant is turned away: by what the secure processor says of itself, and by the newest
evidence of a guest that the agent has seen.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from agent.cli.doctor_line import Line
from agent.host.sev import SevError, SnpPlatformStatus, snp_platform_status

if TYPE_CHECKING:
    from agent.config import AttestationConfig, Config, SnpConfig

CPUINFO = Path("/proc/cpuinfo")
_UPDATE = "update the host's BIOS and SEV firmware, or say what is good enough: "


def snp_lines(
    config: Config,
    ask: Callable[[], SnpPlatformStatus] = snp_platform_status,
    cpuinfo: Path = CPUINFO,
) -> list[Line]:
    """What it would be refused for, if anything; and firmware that could be rolled back."""
    found = [_platform(config.attestation, ask, cpuinfo), _list(config, cpuinfo)]
    return [line for line in (*found, _provisional(config)) if line is not None]


def _list(config: Config, cpuinfo: Path) -> Line | None:
    """None for a processor that is not known, which is told already."""
    from agent.attestation.evidence import EvidenceError
    from agent.attestation.snp_tcb import product_of
    from agent.cli.doctor_snp_list import revocation_line

    family, model, _ = _line(cpuinfo.read_text(encoding="utf-8"))
    try:
        product = product_of(family, model)
    except EvidenceError:
        return None
    return revocation_line(config, product, dt.datetime.now(dt.UTC))


def _platform(
    policy: AttestationConfig, ask: Callable[[], SnpPlatformStatus], cpuinfo: Path
) -> Line:
    from agent.attestation.evidence import EvidenceError

    what = "snp firmware"
    try:
        status = ask()
    except SevError as error:
        mend = "run as root on a host with SEV-SNP on"
        return Line(what, "warn", f"not asked whether it is new enough: {error}", mend)
    line = _line(cpuinfo.read_text(encoding="utf-8"))
    try:
        faults = [*_faults(policy.snp, status, line), *_not_told(policy, status)]
    except EvidenceError as error:
        return Line(what, "error", str(error), "use a processor that this version knows")
    told = f"API {status.api}, build {status.build}"
    if faults:
        detail = f"{told}: evidence of this host would be refused: {'; '.join(faults)}"
        return Line(what, "error", detail, f"{_UPDATE}attestation.snp")
    return Line(what, "ok", f"{told}: new enough for attestation.snp")


def _faults(
    snp: SnpConfig, status: SnpPlatformStatus, line: tuple[int, int, int]
) -> Iterator[str]:
    """Raises EvidenceError for a processor that is not known."""
    from agent.attestation.policy_snp_tcb import below, floors_of
    from agent.attestation.snp_tcb import decode_tcb, product_of
    from agent.config import SignerRule

    product = product_of(line[0], line[1])
    floors, source = floors_of(product, line, snp)
    current = decode_tcb(status.current_tcb, product, "current TCB")
    reported = decode_tcb(status.reported_tcb, product, "reported TCB")
    for which, tcb, minimum in (
        ("current", current, snp.current_tcb),
        ("reported", reported, snp.reported_tcb),
        ("launch", current, snp.launch_tcb),
    ):
        if low := below(tcb, minimum, floors, source):
            yield f"{which} TCB: {', '.join(low)}"
    if tuple(map(int, status.api.split("."))) < tuple(map(int, snp.minimum_abi.split("."))):
        yield f"firmware API {status.api}, at least {snp.minimum_abi}"
    if status.chip_key_masked and snp.signer is not SignerRule.VLEK:
        yield "the chip's key is masked: no VCEK signs a report"
    if status.vlek_loaded and snp.signer is SignerRule.VCEK:
        yield "a VLEK is loaded, and attestation.snp.signer wants a VCEK"
    if not status.vlek_loaded and snp.signer is SignerRule.VLEK:
        yield "no VLEK is loaded, and attestation.snp.signer wants one"


def _not_told(policy: AttestationConfig, status: SnpPlatformStatus) -> Iterator[str]:
    """What a report of this platform does not say, and the policy asks for."""
    if status.chip_id_masked and policy.require_chip_id:
        yield "the chip's id is masked, and attestation.require_chip_id asks for it"
    if policy.snp.require_ciphertext_hiding and not status.ciphertext_hiding:
        yield "ciphertext hiding is off, and attestation.snp.require_ciphertext_hiding asks for it"
    if policy.snp.require_alias_check and not status.alias_check_complete:
        yield (
            "the memory's aliases were not looked for at the boot, and "
            "attestation.snp.require_alias_check asks for it"
        )


def _line(cpuinfo: str) -> tuple[int, int, int]:
    """Family, model and stepping of the first processor; zeros where they are not told."""
    found = {"cpu family": 0, "model": 0, "stepping": 0}
    for text in cpuinfo.split("\n\n", 1)[0].splitlines():
        name, _, value = text.partition(":")
        if name.strip() in found and value.strip().isdecimal():
            found[name.strip()] = int(value)
    return found["cpu family"], found["model"], found["stepping"]


def _provisional(config: Config) -> Line | None:
    """By the newest report of a guest: the secure processor itself does not say it."""
    from agent.attestation.collateral_cache.disk_cache import DiskCache
    from agent.attestation.document import CpuKind
    from agent.attestation.evidence import EvidenceError
    from agent.attestation.snp_report import parse_report

    answer = DiskCache(config.state_dir / "collateral").load(f"latest-{CpuKind.SNP}")
    if answer is None:
        return None
    try:
        report = parse_report(answer.body)
    except EvidenceError:
        return None
    current, committed = report.current_firmware, report.committed_firmware
    if current == committed and report.current_tcb == report.committed_tcb:
        return Line("snp commit", "ok", f"firmware {current} is committed")
    refused = config.attestation.snp.require_committed
    return Line(
        "snp commit",
        "error" if refused else "warn",
        f"firmware {current} is provisional: the host can go back to {committed}"
        + ("; attestation.snp.require_committed refuses it" if refused else ""),
        "commit it when it is known to be good (SNP_COMMIT, as `snphost commit` does)",
    )
