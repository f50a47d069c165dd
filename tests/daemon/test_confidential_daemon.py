"""The whole daemon with `tee: sev-snp` and `tee: tdx` on a host that is not ready for it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from agent.releases.build import build_release, read_image
from agent.releases.naming import Kind
from agent.releases.tdx_registers import rtmr1, rtmr2
from tests.daemon.conftest import running
from tests.fakes.daemon_process import Daemon, free_ports
from tests.fakes.guest_releases import REPO, config_of, guest_image
from tests.fakes.tiny_firmware import tiny_firmware

SWITCHES = {
    "sev-snp": "module/kvm_amd/parameters/sev_snp",
    "tdx": "module/kvm_intel/parameters/tdx",
}


@pytest.fixture
def world(tmp_path: Path) -> dict[str, Path]:
    """A release with a promise that holds, one without, a firmware, and a tree without a TEE."""
    firmware = tmp_path / "firmware" / "OVMF.fd"
    firmware.parent.mkdir()
    firmware.write_bytes(tiny_firmware())
    source, image = tmp_path / "source", read_image(guest_image())
    for tag, promise in (("v1", None), ("altered", "ab" * 48)):
        build_release(
            config=config_of(),
            image=image,
            repo=REPO,
            tag=tag,
            out=source,
            snp_measurement=promise,
            firmware=firmware,
        )
    manifest = next((source / REPO / "v1").glob("*.json"))
    promised = json.loads(manifest.read_text())
    kernel, initrd = (image.files[kind].read_bytes() for kind in (Kind.KERNEL, Kind.INITRD))
    right = registers(kernel, initrd, promised)
    for tag, registers_of in (("tdx", right), ("tdx-altered", right | {"rtmr1": "ab" * 48})):
        promised["tdx_measurement"] = registers_of
        (source / REPO / tag).mkdir()
        (source / REPO / tag / manifest.name).write_text(json.dumps(promised))
    (tmp_path / "sys" / "bus" / "pci" / "devices").mkdir(parents=True)
    return {"source": source, "firmware": firmware.parent, "sys": tmp_path / "sys"}


def registers(kernel: bytes, initrd: bytes, promised: dict[str, Any]) -> dict[str, str]:
    memory_mib, cmdline = promised["vm_shape"]["memory_mb"], promised["cmdline"]
    return {
        "rtmr1": rtmr1(kernel, len(initrd), cmdline, memory_mib).hex(),
        "rtmr2": rtmr2(cmdline, hashlib.sha384(initrd).digest()).hex(),
    }


def settings(world: dict[str, Path], tee: str, **more: Any) -> dict[str, Any]:
    return {
        "tee": tee,
        "allow_unattested": False,
        "host": {"sysfs_root": str(world["sys"])},
        "qemu": {"firmware_dir": str(world["firmware"]), **more},
        "attestation": {
            "collateral": {"offline": True},
            "tdx": {"platforms": [{"mrtd": "aa" * 48, "rtmr0": "bb" * 48}]},
        },
    }


async def fault_of(daemon: Daemon, tag: str, port: int) -> Any:
    """How the deployment of a tag ends."""
    body = {"tag": tag, "repo": REPO, "listen": f"127.0.0.1:{port}"}
    answer = await daemon.send("PUT", f"/v1/deployments/d-{tag}", body)
    assert answer.status == 202, answer.body
    return (await daemon.over(f"d-{tag}"))["error"]


async def test_a_host_without_the_tee_says_all_that_it_lacks_and_boots_nothing(
    world: dict[str, Path],
) -> None:
    async with running(world["source"], settings=settings(world, "sev-snp")) as daemon:
        host = (await daemon.get("/status")).body["host"]
        assert (host["tee"], host["simulated"]) == ("sev-snp", False)
        fault = await fault_of(daemon, "v1", daemon.https)
        assert (fault["code"], fault["step"]) == ("tee_unavailable", "prepare")
        assert "boot with kvm_amd.sev_snp=1" in fault["detail"]
        assert "QEMU" in fault["detail"]  # which cannot tell the C-bit here either
        assert "misc controller" in fault["detail"]

        # a plan says so before, by the same looks; what the ledger counts is its own to say
        planned = await daemon.send("POST", "/v1/plan", {"deployment": "d-v1"})
        assert planned.body["strategy"] == "refuse"
        codes = {one["code"] for one in planned.body["reasons"]}
        assert {"tee_unavailable", "launch_impossible"} <= codes
        told = "; ".join(one["detail"] for one in planned.body["reasons"])
        assert "boot with kvm_amd.sev_snp=1" in told

        # and before that, what would be measured otherwise than promised
        fault = await fault_of(daemon, "altered", daemon.plain)
        assert (fault["code"], fault["step"]) == ("measurement_mismatch", "prepare")
        assert "ab" * 48 in fault["detail"]
        # the doctor asks the agent, and the agent what it could launch
        code, out, _ = await daemon.cli("doctor", "-o", "json")
        lines = json.loads(out)
        assert (code, lines[0]["what"], lines[0]["state"]) == (1, "agent", "ok")
        (where,) = [line["detail"] for line in lines if line["what"] == "state_dir"]
        assert where.startswith(str(daemon.state))
        assert [line["state"] for line in lines if line["what"] == "ports"] == ["ok"]
        launches = [line["detail"] for line in lines if line["what"] == "launches"]
        assert [one.partition(" ")[0] for one in launches] == ["d-altered", "d-v1"]
        assert all("tee_unavailable" in one for one in launches)

        planned = await daemon.send("POST", "/v1/plan", {"deployment": "d-altered"})
        assert "measurement_mismatch" in {one["code"] for one in planned.body["reasons"]}
        assert (await daemon.get("/v1/enclaves")).body["enclaves"] == []
        daemon.stop()


async def test_a_trust_domain_wants_its_firmware_and_its_quote_service(
    world: dict[str, Path],
) -> None:
    quotes = world["sys"] / "qgs.socket"
    configured = settings(world, "tdx", quote_service=str(quotes))
    async with running(world["source"], settings=configured) as daemon:
        fault = await fault_of(daemon, "tdx", daemon.https)
        assert (fault["code"], fault["step"]) == ("tee_unavailable", "prepare")
        assert "boot with kvm_intel.tdx=1" in fault["detail"]
        assert "qemu.tdx_firmware" in fault["detail"]
        assert f"the quote service at {quotes} cannot be reached" in fault["detail"]

        # and before that, what promises nothing, or would be measured otherwise than promised
        fault = await fault_of(daemon, "v1", daemon.plain)
        assert (fault["code"], fault["step"]) == ("release_invalid", "prepare")
        assert "no tdx_measurement" in fault["detail"]
        fault = await fault_of(daemon, "tdx-altered", free_ports(1)[0])
        assert (fault["code"], fault["step"]) == ("measurement_mismatch", "prepare")
        assert "RTMR1 would be" in fault["detail"]
        assert "ab" * 48 in fault["detail"]
        assert (await daemon.get("/v1/enclaves")).body["enclaves"] == []
        daemon.stop()
