"""Which TEE a host is found to have, and what is said of one that is only configured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agent.config import Config, NetworkConfig, NetworkMode, Tee
from agent.daemon.choices import CannotStartError, choose

SWITCHES = {
    Tee.SEV_SNP: "module/kvm_amd/parameters/sev_snp",
    Tee.TDX: "module/kvm_intel/parameters/tdx",
}


def configured(sysfs: Path, tee: Tee) -> Config:
    """On a network that needs no trial."""
    config = Config(tee=tee, network=NetworkConfig(mode=NetworkMode.USER))
    host = msgspec.structs.replace(config.host, sysfs_root=sysfs)
    return msgspec.structs.replace(config, host=host)


def switch_on(sysfs: Path, tee: Tee, word: str = "Y\n") -> None:
    path = sysfs / SWITCHES[tee]
    path.parent.mkdir(parents=True)
    path.write_text(word)


@pytest.mark.parametrize("tee", SWITCHES)
async def test_auto_takes_the_tee_that_the_kernel_has_on(tmp_path: Path, tee: Tee) -> None:
    switch_on(tmp_path, tee, "1\n")
    chosen = (await choose(configured(tmp_path, Tee.AUTO))).tee
    assert (chosen.value, chosen.reason) == (tee, "on in this host's kernel")


async def test_auto_without_a_tee_does_not_make_do_with_plain_vms(tmp_path: Path) -> None:
    switch_on(tmp_path, Tee.SEV_SNP, "N\n")
    with pytest.raises(CannotStartError, match="no TEE was found"):
        await choose(configured(tmp_path, Tee.AUTO))


@pytest.mark.parametrize("tee", SWITCHES)
async def test_a_configured_tee_that_is_off_starts_the_daemon_and_is_said(
    tmp_path: Path, tee: Tee
) -> None:
    chosen = (await choose(configured(tmp_path, tee))).tee
    assert chosen.value == tee
    assert "not on in this host's kernel" in chosen.reason
    switch_on(tmp_path, tee)
    assert (await choose(configured(tmp_path, tee))).tee.reason == "configured"
