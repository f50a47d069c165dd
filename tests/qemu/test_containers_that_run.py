"""Images that the guest runs: their programs are Debian's, put together by buildah.

Held against Docker's documents (restart policies, HEALTHCHECK, resource constraints) and the
public guest's internal/containers/containers.go (networks, addresses, privileges, phases).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.enclaves.fleet import Fleet
from agent.model.enclave import Enclave
from agent.model.release import LocalImage
from agent.releases.build import build_release, read_image
from agent.releases.naming import Kind, artifact_name
from agent.releases.with_images import image_with
from tests.fakes.busybox_image import busybox_image
from tests.fakes.guest_releases import guest_image
from tests.fakes.vms import Image, get, lone_fleet, order, row, until_printed

pytestmark = [pytest.mark.qemu, pytest.mark.slow, pytest.mark.root]
STAGES = "/.well-known/tinfoil-boot-stages"
CONTAINERS = "/.well-known/tinfoil-containers"
SERVE = (
    "mkdir -p /srv/w && cd /srv/w && echo ok >health && "
    "{ id; env; cat /etc/hosts; wget -qO- http://store:9000/name; } >told && "
    "(echo no >/read-only || echo root is read-only) >root 2>&1; exec httpd -f -p 8080"
)
STORE = "mkdir /w && echo the-store >/w/name && exec httpd -f -p 9000 -h /w"


def container(name: str, digest: str, command: str, **more: Any) -> dict[str, Any]:
    image = f"localhost/busybox@{digest}"
    return {"name": name, "image": image, "command": [command], **more}


def config_of(*containers: dict[str, Any]) -> bytes:
    document = {
        "cvm-version": "0.12.0",
        "cpus": 1,
        "memory": 256,
        "cvm-network": {"inbound-ports": [8080, 8081]},
        "networks": {"back": {"egress": "closed"}},
        "containers": list(containers),
        "shim": {"upstream-port": 8080, "paths": ["/health", "/told", "/root", "/away"]},
    }
    return json.dumps(document).encode()


def made(tmp_path: Path, config: bytes, images: Path, *, laid: bytes | None = None) -> Image:
    """The release of that config, and its files, as a host has them.

    `laid`: the config whose images are on the root disk, if it is another.
    """
    out = tmp_path / "source"
    with image_with(read_image(guest_image()), laid or config, images) as image:
        built = build_release(config=config, image=image, repo="own/web", tag="v1", out=out)
        files = {kind: out / "images" / artifact_name(image.version, kind) for kind in Kind}
    local = LocalImage(
        kernel=files[Kind.KERNEL], initrd=files[Kind.INITRD], root_disk=files[Kind.ROOT_DISK]
    )
    return Image(release=built.release, files=local)


async def until_said(
    fleet: Fleet, vm: Enclave, path: str, holds: Callable[[bytes], bool], port: int = 443
) -> bytes:
    """Ask until a 200 answer is so; the test's own timeout ends it."""
    while True:
        with contextlib.suppress(OSError, ValueError):
            async with asyncio.timeout(10):
                status, body, _ = await get(fleet, vm, path, port=port)
            if status == 200 and holds(body):
                return body
        await asyncio.sleep(0.05)


def rows_of(body: bytes) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in json.loads(body)["containers"]}


async def test_they_run_reach_each_other_and_are_told_of_as_docker_would(
    short_dir: Path, tmp_path: Path
) -> None:
    layout, digest = busybox_image(tmp_path / "busybox")
    check = {
        "test": ["CMD", "wget", "-q", "--spider", "http://localhost:8080/health"],
        "interval": "1s",
        "start_period": "60s",
    }
    served = {"networks": ["back"], "ports": ["8080"], "healthcheck": check}
    served |= {"user": "1000:1001", "tmpfs": {"/srv": "size=1m,mode=1777"}}
    served |= {
        "env": [{"COLOUR": "red"}, "REGION", {"GUEST_CONSOLE": "1"}],
        "secrets": ["API_KEY"],
    }
    config = config_of(
        container("web", digest, SERVE, **served),
        container("store", digest, STORE, networks=["back"], read_only=False),
        container("tries", digest, "echo trying; exit 3", restart="on-failure:2"),
        container("eats", digest, "dd if=/dev/zero of=/dev/null bs=64M", memory="8m"),
        {"name": "acted", "image": f"registry.example/x@sha256:{'0' * 64}"},
    )
    vm = row("guestaa2", memory_mib=256)
    async with lone_fleet(short_dir) as fleet:
        image = made(tmp_path, config, layout)
        await fleet.launch(vm, order(image, variables={"REGION": "north"}))
        told = (await until_said(fleet, vm, "/told", lambda _: True)).decode()
        assert "uid=1000 gid=1001" in told
        for line in ("COLOUR=red", "REGION=north", "API_KEY=correct-horse", "FROM_IMAGE=yes"):
            assert f"{line}\n" in told
        assert "GUEST_" not in told
        assert "172.31.255.2\t" in told
        assert told.endswith("the-store\n")
        assert b"read-only" in await until_said(fleet, vm, "/root", lambda _: True)
        assert (await get(fleet, vm, "/away"))[0] == 404  # of the workload itself
        assert json.loads((await get(fleet, vm, "/other"))[1])["error"]["message"] == "Not found."
        assert await until_said(fleet, vm, "/health", lambda _: True, port=8080) == b"ok\n"

        def settled(body: bytes) -> bool:
            return rows_of(body)["tries"]["status"] == "exited"

        rows = rows_of(await until_said(fleet, vm, CONTAINERS, settled))
        assert (rows["web"]["status"], rows["web"]["health"]["status"]) == ("running", "healthy")
        assert "played" not in rows["web"]
        assert (rows["tries"]["exit_code"], rows["tries"]["restart_count"]) == (3, 2)
        assert (rows["eats"]["oom_killed"], rows["eats"]["exit_code"]) == (True, 137)
        assert rows["acted"]["played"] is True
        console = await until_printed(fleet, vm.id, b"boot complete")
        assert console.count(b"tries: trying") >= 1
        assert b"correct-horse" not in console


async def test_one_that_is_not_on_the_root_disk_or_gets_unhealthy_fails_its_stage_by_name(
    short_dir: Path, tmp_path: Path
) -> None:
    layout, digest = busybox_image(tmp_path / "busybox")
    check = {"test": ["CMD", "sh", "-c", "echo not today; false"], "interval": "1s", "retries": 1}
    sick = container("sick", digest, "sleep 1000", healthcheck=check)
    absent = f"ghcr.io/own/absent@sha256:{'1' * 64}"
    config = config_of(sick, {"name": "absent", "image": absent})
    image = made(tmp_path, config, layout, laid=config_of(sick))
    vm = row("guestaa2", memory_mib=256)
    async with lone_fleet(short_dir) as fleet:
        await fleet.launch(vm, order(image))

        def failed(body: bytes) -> bool:
            return b'"failed"' in body and b"0001-01-01" not in body

        stages = json.loads(await until_said(fleet, vm, STAGES, failed))["stages"]
        (stage,) = [one for one in stages if one["name"] == "containers"]
        assert stage["detail"] == (
            f"sick: not today; absent: pulling image: {absent} is not on this root disk"
        )
        phases = {one["name"]: one["stages"] for one in stage["stages"]}
        assert [p["status"] for p in phases["sick"]] == ["ok", "ok", "failed"]
        assert [p["status"] for p in phases["absent"]] == ["failed", "pending"]
        assert (await get(fleet, vm, CONTAINERS))[0] == 503
