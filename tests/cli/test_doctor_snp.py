"""The doctor about SEV-SNP: told before a tenant is turned away. Only the device is played."""

from __future__ import annotations

import datetime as dt
import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate

from agent.attestation.collateral_cache.answer import VendorAnswer
from agent.attestation.collateral_cache.disk_cache import DiskCache
from agent.attestation.roots import Trust
from agent.attestation.snp_tcb import Product
from agent.cli.doctor_line import Line
from agent.cli.doctor_snp import snp_lines
from agent.cli.doctor_snp_list import revocation_line
from agent.config import (
    AttestationConfig,
    CollateralConfig,
    Config,
    SignerRule,
    SnpConfig,
    SnpFloors,
    SnpMinimum,
)
from agent.host.sev import SevError, SnpPlatformStatus, snp_platform_status
from tests.fakes.played_sev import PlayedSev
from tests.fakes.snp_chain import NOW, FakeAmd, tcb_bytes

MILAN = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"


OLD_SNP = tcb_bytes(Product.MILAN, snp=20)
OLD_PATCH = tcb_bytes(Product.MILAN, microcode=218)


def lines(
    tmp_path: Path,
    snp: SnpConfig | None = None,
    cpu: str = MILAN,
    policy: AttestationConfig | None = None,
    **sev: Any,
) -> list[Line]:
    device, cpuinfo = tmp_path / "sev", tmp_path / "cpuinfo"
    device.touch()
    cpuinfo.write_text(cpu)
    policy = policy or AttestationConfig(snp=snp or SnpConfig())
    config = msgspec.structs.replace(Config(), state_dir=tmp_path, attestation=policy)
    return snp_lines(config, lambda: snp_platform_status(device, PlayedSev(**sev)), cpuinfo)


def test_a_host_of_today_is_good_enough(tmp_path: Path) -> None:
    (line,) = lines(tmp_path)
    assert (line.what, line.state) == ("snp firmware", "ok")
    assert line.detail == "API 1.55, build 21: new enough for attestation.snp"


@pytest.mark.parametrize(
    ("sev", "snp", "word"),
    [
        ({"current": OLD_SNP}, SnpConfig(), "current TCB: snp 20, at least 24 (AMD-SB-3019"),
        ({"reported": OLD_PATCH}, SnpConfig(), "reported TCB: microcode 218, at least 219"),
        ({}, SnpConfig(minimum=SnpMinimum(bootloader=5)), "at least 5 (attestation.snp.minimum)"),
        ({"minor": 54}, SnpConfig(minimum_abi="1.55"), "API 1.54, at least 1.55"),
        ({"flags": 2}, SnpConfig(), "the chip's key is masked"),
        ({"flags": 4}, SnpConfig(), "a VLEK is loaded"),
        ({}, SnpConfig(signer=SignerRule.VLEK), "no VLEK is loaded"),
        ({}, SnpConfig(require_ciphertext_hiding=True), "ciphertext hiding is off"),
        ({}, SnpConfig(require_alias_check=True), "aliases were not looked for"),
    ],
)
def test_what_evidence_would_be_refused_for_is_told_beforehand(
    tmp_path: Path, sev: dict[str, Any], snp: SnpConfig, word: str
) -> None:
    (line,) = lines(tmp_path, snp, **sev)
    assert line.state == "error"
    assert "evidence of this host would be refused: " in line.detail
    assert word in line.detail
    assert "attestation.snp" in line.mend


def test_what_was_not_asked_for_is_no_fault(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, SnpConfig(minimum=SnpFloors.NONE), current=OLD_SNP)
    assert line.state == "ok"
    (line,) = lines(tmp_path, SnpConfig(signer=SignerRule.ANY), flags=4)
    assert line.state == "ok"


def test_what_the_platform_has_of_what_is_asked_for_is_no_fault(tmp_path: Path) -> None:
    asked = SnpConfig(require_ciphertext_hiding=True, require_alias_check=True)
    (line,) = lines(tmp_path, asked, flags=1 << 6, memory=0b11)
    assert line.state == "ok"


@pytest.mark.parametrize("required", [False, True])
def test_a_masked_chip_id_is_told_where_evidence_must_name_it(
    tmp_path: Path, required: bool
) -> None:
    policy = AttestationConfig(require_chip_id=required)
    (line,) = lines(tmp_path, policy=policy, flags=1)
    assert line.state == ("error" if required else "ok")
    assert ("the chip's id is masked" in line.detail) is required


def test_a_processor_that_is_not_known_is_told(tmp_path: Path) -> None:
    (line,) = lines(tmp_path, cpu="cpu family\t: 27\nmodel\t: 1\n")
    assert line.state == "error"
    assert "no product that we know" in line.detail


def test_a_device_that_cannot_be_asked_is_a_warning_with_the_reason(tmp_path: Path) -> None:
    def absent() -> SnpPlatformStatus:
        return snp_platform_status(tmp_path / "none")

    (line,) = snp_lines(Config(), absent)
    assert line.state == "warn"
    assert "none cannot be opened: No such file" in line.detail


def test_a_command_that_fails_tells_the_firmware_s_error(tmp_path: Path) -> None:
    def fails(descriptor: int, request: int, command: bytearray) -> None:
        command[-4:] = (0x1A).to_bytes(4, "little")
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    device = tmp_path / "sev"
    device.touch()
    with pytest.raises(SevError, match=r"Input/output error, firmware error 0x1a"):
        snp_platform_status(device, fails)


@pytest.mark.parametrize(
    ("committed", "required", "state"),
    [((21, 55, 1), True, "ok"), ((20, 55, 1), False, "warn"), ((20, 55, 1), True, "error")],
)
def test_provisional_firmware_is_told_by_the_newest_evidence(
    tmp_path: Path, committed: tuple[int, int, int], required: bool, state: str
) -> None:
    report = FakeAmd().report(committed_firmware=bytes(committed))
    DiskCache(tmp_path / "collateral").store("latest-sev-snp", VendorAnswer(body=report))
    _, line = lines(tmp_path, SnpConfig(require_committed=required))
    assert (line.what, line.state) == ("snp commit", state)
    assert state == "ok" or "provisional: the host can go back to 1.55.20" in line.detail


def test_damaged_evidence_says_nothing(tmp_path: Path) -> None:
    DiskCache(tmp_path / "collateral").store("latest-sev-snp", VendorAnswer(body=b"x"))
    assert len(lines(tmp_path)) == 1


AMD, DAY = FakeAmd(), dt.timedelta(days=1)
OFFLINE = CollateralConfig(offline=True)


def revocation(
    tmp_path: Path,
    *lists: bytes,
    require: bool | None = None,
    collateral: CollateralConfig | None = None,
    trust: Trust | None = AMD.trust,
) -> Line | None:
    """`lists`: what the agent keeps, then what the operator gives."""
    given = AMD.endorsements
    pem = b"".join(
        load_der_x509_certificate(one).public_bytes(Encoding.PEM) for one in (given.ask, given.ark)
    )
    collateral = collateral or CollateralConfig()
    for name, crl in zip(("state/collateral", "given"), lists, strict=False):
        cache = DiskCache(tmp_path / name)
        cache.store("amd-vcek-chain-milan", VendorAnswer(body=pem))
        cache.store("amd-vcek-crl-milan", VendorAnswer(body=crl))
    policy = AttestationConfig(
        snp=SnpConfig(require_crl=require),
        collateral=msgspec.structs.replace(collateral, directory=tmp_path / "given"),
    )
    config = msgspec.structs.replace(Config(), state_dir=tmp_path / "state", attestation=policy)
    return revocation_line(config, Product.MILAN, NOW, trust)


def test_a_list_that_is_over_is_told_before_evidence_is_refused_for_it(tmp_path: Path) -> None:
    over = AMD.crl(begin=NOW - 3 * DAY, end=NOW - DAY)
    line = revocation(tmp_path, over, collateral=OFFLINE)
    assert line is not None
    assert (line.what, line.state) == ("snp revocation", "error")
    assert "was to be renewed by" in line.detail
    online = revocation(tmp_path, over)
    assert online is not None
    assert (online.state, "amd_url" in online.mend) == ("warn", True)
    newer = revocation(tmp_path, over, AMD.crl(number=8), collateral=OFFLINE)
    assert newer is not None
    assert newer.state == "ok"
    assert revocation(tmp_path, over, require=False, collateral=OFFLINE) is None


def test_an_older_list_that_is_good_yet_does_not_stand_for_a_newer_one(tmp_path: Path) -> None:
    over = AMD.crl(number=9, begin=NOW - 3 * DAY, end=NOW - DAY)
    line = revocation(tmp_path, AMD.crl(number=8), over, collateral=OFFLINE)
    assert line is not None
    assert line.state == "error"


def test_where_there_was_never_a_list_one_is_missed_only_where_it_is_asked_for(
    tmp_path: Path,
) -> None:
    assert revocation(tmp_path, collateral=OFFLINE) is None
    assert revocation(tmp_path, require=True) is None, "it is fetched when it is needed"
    line = revocation(tmp_path, require=True, collateral=OFFLINE)
    assert line is not None
    assert line.state == "error"
    foreign = revocation(tmp_path, AMD.crl(), require=True, collateral=OFFLINE, trust=None)
    assert foreign is not None
    assert foreign.state == "error", "a list of somebody else's is none"
