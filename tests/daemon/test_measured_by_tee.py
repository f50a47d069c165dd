"""What is predicted before anything is touched, and as which machine a launch is admitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.capacity.supply import Grant
from agent.config import Config, Tee
from agent.daemon.parts import _measured
from agent.model.release import LocalImage
from agent.releases.measurement import SnpMeasurements
from agent.releases.tdx_measurement import PlatformNotEndorsedError
from agent.updates.admission.rows import new_enclave
from simulator.rows import deployment, instant, release, revision

IMAGE = LocalImage(kernel=Path("/nowhere"), initrd=Path("/nowhere"), root_disk=Path("/nowhere"))
REGISTERS = {"rtmr1": "01" * 48, "rtmr2": "02" * 48}


async def test_a_trust_domain_is_held_against_its_release_and_the_endorsed_platforms() -> None:
    check = _measured(Config(), Tee.TDX, None)
    with pytest.raises(PlatformNotEndorsedError):
        await check(release(tdx_measurement=REGISTERS), IMAGE, 2)


async def test_of_plain_vms_nothing_is_predicted() -> None:
    await _measured(Config(), Tee.NONE, None)(release(), IMAGE, 2)
    snp = SnpMeasurements()
    assert _measured(Config(), Tee.SEV_SNP, snp) == snp.check_image


def test_what_is_admitted_now_has_its_root_ports_by_its_board() -> None:
    grant = Grant(address="10.215.0.2", gpus=())
    assert new_enclave(deployment(), revision(), grant, None, instant()).ports_by_board
