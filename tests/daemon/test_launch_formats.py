"""Releases that this host cannot launch or could not believe: refused by the daemon, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.config import Tee
from agent.daemon.launch_formats import LaunchFormats
from agent.enclaves.capabilities import DEVICES, OBJECTS, QemuCapabilities, igvm_lacks
from agent.enclaves.qemu_probe import QemuProbe
from agent.model.igvm import Igvm
from agent.model.release import Release
from agent.model.resources import Demand
from agent.releases.port import LaunchFormatError
from simulator.rows import release
from tests.daemon.conftest import running
from tests.fakes import gpus
from tests.fakes.argv_bench import cached_qemu
from tests.fakes.fake_vms import fake_releases, install, settings
from tests.fakes.guest_releases import REPO, config_of

FILES = {"snp": "7a" * 32, "tdx": "8b" * 32}
ABLE = QemuCapabilities(
    version=(12, 0, 0),
    objects={name: (*sorted(keys), "measure-bsp-only") for name, keys in OBJECTS.items()},
    devices={name: tuple(sorted(keys)) for name, keys in DEVICES.items()},
    machine=("igvm-cfg",),
)


def test_each_property_that_is_missing_is_named() -> None:
    assert igvm_lacks(ABLE, Tee.SEV_SNP) == []
    objects = {name: keys for name, keys in ABLE.objects.items() if name != "igvm-cfg"}
    bare = msgspec.structs.replace(ABLE, objects=objects, machine=())
    assert igvm_lacks(bare, Tee.SEV_SNP) == [
        "it has no object igvm-cfg",
        "its machine q35 has no igvm-cfg",
    ]
    early = {**ABLE.objects, "sev-snp-guest": tuple(sorted(OBJECTS["sev-snp-guest"]))}
    assert igvm_lacks(msgspec.structs.replace(ABLE, objects=early), Tee.SEV_SNP) == [
        "its object sev-snp-guest has no measure-bsp-only"
    ]
    assert igvm_lacks(ABLE, Tee.TDX) == ["no QEMU starts a tdx-guest of such a file"]
    assert "tee: none has no such launch" in igvm_lacks(ABLE, Tee.NONE)[0]


@pytest.mark.qemu
@pytest.mark.parametrize("kind", ["system", "snp", "tdx"])
async def test_every_qemu_that_can_be_had_lacks_what_it_takes(tmp_path: Path, kind: str) -> None:
    binary = "qemu-system-x86_64" if kind == "system" else cached_qemu(kind)
    if binary is None:
        pytest.skip("scripts/fetch-qemu was not run")
    probe = QemuProbe(binary=binary, user=None, state_dir=tmp_path, run_dir=tmp_path, sev=False)
    found = await probe.capabilities()
    assert {"acpi", "memory-backend"} <= set(found.machine)  # it did say what its q35 has
    tee = Tee.TDX if kind == "tdx" else Tee.SEV_SNP
    with pytest.raises(LaunchFormatError, match="no object igvm-cfg") as refused:
        await LaunchFormats(tee, probe)(release(igvm=Igvm(snp_sha256="7a" * 32)))
    assert refused.value.code == "launch_format_unsupported"
    await LaunchFormats(tee, probe)(release())


class Able:
    """A QEMU as there is none."""

    async def capabilities(self) -> QemuCapabilities:
        return ABLE


async def test_a_qemu_that_lacks_nothing_was_not_tried() -> None:
    formats = LaunchFormats(Tee.SEV_SNP, Able())  # type: ignore[arg-type]
    with pytest.raises(LaunchFormatError, match="not been tried with any QEMU"):
        await formats(release(igvm=Igvm(snp_sha256="7a" * 32)))


def on_boards(*counts: tuple[int, int]) -> LaunchFormats:
    """On a TDX host with boards of so many GPUs of that device id; Hopper's with its switches."""

    class Seen:
        inventory = gpus.inventory(
            *(
                gpus.gpu(f"{number:04x}:{n + 1:02x}:00.0", device=device)
                for number, (count, device) in enumerate(counts)
                for n in range(count)
            ),
            switches=tuple(
                gpus.gpu(f"00ff:{n:02x}:00.0", device=0x22A3, is_switch=True) for n in range(4)
            ),
        )

    return LaunchFormats(Tee.TDX, Able(), Seen())  # type: ignore[arg-type]


def with_models(models: int, count: int) -> Release:
    demand = Demand(memory_mib=1024, vcpus=2, gpus=count)
    return release(demand=demand, models=tuple(f"{n:064x}" for n in range(models)))


H100, B200, PCIE = 0x2330, 0x2901, 0x2331


@pytest.mark.parametrize(
    ("board", "gpus_wanted", "room"),
    [
        ((8, H100), 8, 15),
        ((8, B200), 8, 15),
        ((8, H100), 1, 24),
        ((8, PCIE), 8, 24),
        ((8, B200), 0, 24),
        ((8, B200), 4, 24),
    ],
)
async def test_models_that_would_lie_where_the_board_s_root_ports_are_refused_by_name(
    board: tuple[int, int], gpus_wanted: int, room: int
) -> None:
    formats = on_boards(board)
    await formats(with_models(room, gpus_wanted))
    if room == 24:
        return
    with pytest.raises(LaunchFormatError, match=f"room for {room} beside the root ports"):
        await formats(with_models(room + 1, gpus_wanted))
    await LaunchFormats(Tee.SEV_SNP, Able())(with_models(room + 1, gpus_wanted))  # type: ignore[arg-type]


def spoil(source: Path, tag: str, change: dict[str, Any]) -> None:
    file = source / REPO / tag / "tinfoil-deployment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.slow
async def test_a_daemon_refuses_what_it_cannot_launch_or_believe_before_anything_boots(
    tmp_path: Path,
) -> None:
    program = install(tmp_path)
    source = fake_releases(
        tmp_path,
        {
            "v1": config_of(),
            "one-file": config_of(),
            "challenged": json.dumps(
                json.loads(config_of()) | {"shim": {"upstream-port": 1, "tls-challenge": "http"}}
            ).encode(),
        },
    )
    spoil(source, "one-file", {"igvm": FILES})
    async with running(source, settings=settings(program)) as daemon:
        refused = await daemon.deploy(tag="one-file")
        assert (refused.status, refused.code) == (409, "launch_format_unsupported")
        assert "igvm-cfg" in refused.body["detail"]
        assert (await daemon.deploy(tag="v1")).status == 202
        assert (await daemon.over())["status"] == "completed"
        assert (await daemon.deployment())["guest_domain"] == "hello.enclaves.example"
        for tag, code in (("one-file", "launch_format_unsupported"),):
            assert (await daemon.update(tag=tag)).code == code
            lease = {"deployment": "hello", "tag": tag, "ttl_s": 60}
            assert (await daemon.send("POST", "/v1/leases", lease)).code == code
            plan = await daemon.send("POST", "/v1/plan", {"deployment": "hello", "tag": tag})
            assert plan.body["reasons"][0]["code"] == code
        plan = await daemon.send("POST", "/v1/plan", {"deployment": "hello", "tag": "challenged"})
        assert plan.body["strategy"] == "stop_then_start"
        assert plan.body["reasons"][0]["code"] == "tls_challenge_exclusive"
        lease = await daemon.send(
            "POST", "/v1/leases", {"deployment": "hello", "tag": "challenged", "ttl_s": 60}
        )
        assert (lease.status, lease.body["strategy"]) == (201, "stop_then_start")
        assert (await daemon.update(tag="challenged")).status == 202
        update = await daemon.over()
        assert (update["strategy"], update["status"]) == ("stop_then_start", "completed")
        await daemon.until(
            lambda one: (
                one is not None
                and [reason["code"] for reason in one["next_update"]["reasons"]]
                == ["tls_challenge_exclusive"]
            )
        )


@pytest.mark.slow
async def test_a_daemon_that_demands_evidence_refuses_a_guest_named_localhost(
    tmp_path: Path,
) -> None:
    program = install(tmp_path)
    source = fake_releases(tmp_path, {"v1": config_of()})
    options = settings(program) | {
        "tee": "simulated",
        "allow_unattested": False,
        "releases": {"default_domain": None},
    }
    async with running(source, settings=options) as daemon:
        refused = await daemon.deploy(tag="v1")
        assert (refused.status, refused.code) == (409, "domain_missing")
        assert "releases.default_domain" in refused.body["detail"]
        code, _, said = await daemon.cli(
            *("deploy", "hello", "--tag", "v1", "--listen", f"127.0.0.1:{daemon.https}")
        )
        assert (code, "dummy report" in said) == (3, True)
