"""Whether VMs are caged on a host, what is said of it, and what is refused where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import CageMode, Config, QemuConfig, Tee
from agent.daemon import cage
from agent.daemon.cage import cage_look_of, caging_of, refusal_of, settle_cage
from agent.daemon.choices import Choices
from agent.daemon.launch_formats import CageUnavailableError, LaunchFormats
from agent.enclaves.cage_proof import CageProof
from agent.enclaves.qemu_probe import QemuProbe
from agent.updates.snapshot.snapshot import Resolved
from simulator.rows import release


def choices(*, tee: Tee = Tee.NONE, network: str = "tap") -> Choices:
    chosen = {"tee": tee, "supervisor": "detached", "network": network, "traffic": "nftables"}
    return Choices(**{name: Resolved(value=value, reason="") for name, value in chosen.items()})


class Host:
    """`fault`: why no cage can be made on it."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.fault, self.tried, self.unlimited = home, None, 0, ""
        self.qemu = home / "qemu"
        self.qemu.write_text("ELF")
        self.qemu.chmod(0o755)
        patch.setattr("os.geteuid", lambda: self.euid)
        patch.setattr(cage, "try_cage", self._try)
        patch.setattr(cage, "cgroups_of_ours", lambda: (None, self.unlimited))
        self.euid = 0

    async def _try(self, *_: object) -> str | None:
        self.tried += 1
        return self.fault

    async def chosen(self, mode: CageMode | None = None, **changes: str) -> Choices:
        qemu = QemuConfig(cage=mode, binary=str(self.qemu))
        config = Config(qemu=qemu, state_dir=self.home, run_dir=self.home / "run")
        self.config = config
        return await settle_cage(config, choices(**changes))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.mark.parametrize("mode", [None, CageMode.ENFORCE])
async def test_where_one_can_be_made_vms_are_caged(host: Host, mode: CageMode | None) -> None:
    chosen = await host.chosen(mode)
    assert chosen.cage.value == "enforce"
    assert caging_of(chosen) is not None
    assert cage_look_of(host.config, chosen) is not None
    assert refusal_of(chosen) is None


async def test_a_host_without_control_groups_for_us_cages_and_says_what_is_missing(
    host: Host,
) -> None:
    host.unlimited = "control groups are systemd's own"
    chosen = await host.chosen()
    assert chosen.cage.value == "enforce"
    assert chosen.cage.reason.endswith("with no limit of memory: control groups are systemd's own")


@pytest.mark.parametrize("mode", [CageMode.OFF, CageMode.REPORT])
async def test_what_is_configured_is_not_tried(host: Host, mode: CageMode) -> None:
    chosen = await host.chosen(mode)
    assert (chosen.cage.value, host.tried) == (mode, 0)
    assert caging_of(chosen) is None
    assert cage_look_of(host.config, chosen) is None


async def test_without_root_and_without_taps_it_is_told_and_nothing_is_refused(
    host: Host,
) -> None:
    user = await host.chosen(CageMode.ENFORCE, network="user")
    assert user.cage.value == "report"
    assert "network.mode: tap" in user.cage.reason
    host.euid = 1000
    nobody = await host.chosen(CageMode.ENFORCE)
    assert nobody.cage.value == "off"
    assert "takes root" in nobody.cage.reason
    assert [refusal_of(one) for one in (user, nobody)] == [None, None]


@pytest.mark.parametrize("tee", [Tee.SEV_SNP, Tee.TDX])
async def test_on_a_real_tee_it_waits_for_its_proof(host: Host, tee: Tee) -> None:
    waiting = await host.chosen(CageMode.ENFORCE, tee=tee)
    assert waiting.cage.value == "report"
    assert "doctor --prove-cage" in waiting.cage.reason
    assert (caging_of(waiting), refusal_of(waiting)) == (None, None)
    CageProof(host.home).record(str(host.qemu), tee)
    assert (await host.chosen(None, tee=tee)).cage.value == "enforce"
    host.qemu.write_text("ELF, newer")
    assert (await host.chosen(None, tee=tee)).cage.value == "report"


async def test_where_none_can_be_made_it_is_told_and_refused_if_insisted_on(host: Host) -> None:
    host.fault = "unshare: Operation not permitted"
    unset = await host.chosen()
    assert (unset.cage.value, refusal_of(unset)) == ("report", None)
    assert "Operation not permitted" in unset.cage.reason
    insisted = await host.chosen(CageMode.ENFORCE)
    assert insisted.cage.value == "unavailable"
    assert caging_of(insisted) is None  # what ran before is launched as it was
    probe = QemuProbe(binary="none", user=None, state_dir=host.home, run_dir=host.home, sev=False)
    asked = LaunchFormats(Tee.NONE, probe, uncaged=refusal_of(insisted))
    with pytest.raises(CageUnavailableError, match=r"set qemu\.cage: report") as refused:
        await asked(release())
    assert refused.value.code == "cage_unavailable"
    await LaunchFormats(Tee.NONE, probe, uncaged=refusal_of(unset))(release())
