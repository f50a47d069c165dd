"""What tests with real VMs share: releases of tiny kernels and of the reference guest, a fleet."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agent.config import Accel
from agent.enclaves.fleet import Fleet
from agent.enclaves.network_user import UserNetwork
from agent.enclaves.port import LaunchOrder, VmView
from agent.enclaves.supervisor_detached import DetachedSupervisor
from agent.host.process import find_by_option
from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import EnclaveId
from agent.model.measurement import MeasuredLaunch
from agent.model.release import Artifact, LocalImage, Release
from agent.model.resources import Demand
from agent.releases.disk_tools import run_tool
from agent.releases.gpt import read_partitions
from agent.releases.launch_digest import snp_launch_digest
from agent.releases.root_disk import SQUASHFS_OPTIONS, make_root_disk
from simulator.rows import enclave, revision
from tests.fakes.guest_releases import guest_firmware

CHECKOUT = Path(__file__).resolve().parent.parent.parent
QEMU = "qemu-system-x86_64"
INBOUND_PORT = 8080
DOMAIN = "web.example.invalid"  # without one no guest boots
CONFIG = f"""\
cvm-version: 0.12.0
cpus: 1
memory: 256
cvm-network: {{inbound-ports: [{INBOUND_PORT}]}}
containers:
  - {{name: web, image: "example.invalid/web:1@sha256:{"0" * 64}", secrets: [API_KEY],
     env: [{{GUEST_CONSOLE: "1"}}]}}
shim: {{upstream-port: {INBOUND_PORT}}}
""".encode()
SUBNET = f"127.219.{os.getpid() % 250}.0/24"  # two runs of the tests at once do not meet


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What is booted: the files, and the release that describes them."""

    release: Release
    files: LocalImage


def tiny_image(directory: Path, kernel: bytes) -> Image:
    """An image of a tiny kernel, with files enough around it."""
    directory.mkdir(exist_ok=True)
    files = LocalImage(
        kernel=directory / "kernel", initrd=directory / "initrd", root_disk=directory / "root"
    )
    files.kernel.write_bytes(kernel)
    files.initrd.write_bytes(b"nothing\n")
    files.root_disk.write_bytes(bytes(1 << 20))
    return Image(release=_release(files, "0" * 64), files=files)


def reference_image() -> Image:
    """The reference guest, built if it is not there yet."""
    directory = CHECKOUT / ".cache" / "guest"
    if not (directory / "image.json").exists():
        subprocess.run([CHECKOUT / "scripts" / "build-guest"], check=True)
    known = json.loads((directory / "image.json").read_text())
    kernel, initrd, raw = (
        directory / known["files"][kind] for kind in ("kernel", "initrd", "raw")
    )
    files = LocalImage(kernel=kernel, initrd=initrd, root_disk=raw)
    return Image(release=_release(files, known["root"]), files=files)


def deaf_image(directory: Path) -> Image:
    """The reference guest as an image of 0.11, whose power button nobody hears: the same but for
    what it says of its version.
    """
    new = reference_image()
    tree, data, disk = directory / "tree", directory / "data", directory / "deaf.raw"
    with new.files.root_disk.open("rb") as raw:
        part = read_partitions(raw, new.files.root_disk.stat().st_size)[1]
        raw.seek(part.offset)
        data.write_bytes(raw.read(part.size))
    run_tool("unsquashfs", "-quiet", "-no-progress", "-d", str(tree), str(data))
    (tree / "image-version").write_text("v0.11.0\n")
    data.unlink()
    run_tool("mksquashfs", str(tree), str(data), "-all-root", *SQUASHFS_OPTIONS)
    root_hash = make_root_disk(data, disk)
    files = msgspec.structs.replace(new.files, root_disk=disk)
    return Image(release=_release(files, root_hash), files=files)


def measured_image() -> Image:
    """The reference guest with a firmware, and the launch digest that follows."""
    return with_firmware(reference_image(), guest_firmware())


def with_firmware(image: Image, firmware: Path) -> Image:
    """The same, promising what is measured of it on one vCPU."""
    launch = MeasuredLaunch(
        vcpus=1,
        firmware=firmware,
        kernel=image.files.kernel,
        initrd=image.files.initrd,
        cmdline=image.release.cmdline,
    )
    return Image(
        files=msgspec.structs.replace(image.files, firmware=firmware),
        release=msgspec.structs.replace(
            image.release,
            firmware_sha256=hashlib.sha256(firmware.read_bytes()).hexdigest(),
            snp_measurement=snp_launch_digest(launch).hex(),
        ),
    )


def _release(files: LocalImage, root_hash: str) -> Release:
    def artifact(path: Path) -> Artifact:
        return Artifact(name=path.name, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    cmdline = (
        "readonly=on pci=realloc,nocrs modprobe.blacklist=nouveau nouveau.modeset=0 "
        f"root=/dev/mapper/root roothash={root_hash} "
        f"tinfoil-config-hash={hashlib.sha256(CONFIG).hexdigest()}"
    )
    return Release(
        repo="web",
        tag="v1.1.0",
        digest="0" * 64,
        cvm_version="0.12.0",
        layout="virtio-pci",
        cmdline=cmdline,
        debug=False,
        config=CONFIG,
        root_hash=root_hash,
        kernel=artifact(files.kernel),
        initrd=artifact(files.initrd),
        root_disk=Artifact(name=files.root_disk.name, sha256=None),
        demand=Demand(memory_mib=256, vcpus=1),
        inbound_ports=(INBOUND_PORT,),
    )


def row(enclave_id: str, place: int = 1, **changes: Any) -> Enclave:
    """An enclave about to be launched, with an address of its own."""
    values: dict[str, Any] = {
        "lifecycle": Lifecycle.LAUNCHING,
        "launch_uuid": str(uuid.uuid4()),
        "address": UserNetwork(SUBNET).addresses()[place],
        "memory_mib": 128,
    }
    return enclave(enclave_id, **(values | changes))


def order(
    image: Image,
    *,
    variables: dict[str, str] | None = None,
    secret: str = "correct-horse",
) -> LaunchOrder:
    """To launch this image, with the one secret that the config names."""
    return LaunchOrder(
        revision=revision(
            inbound_ports=(INBOUND_PORT,),
            variables=variables or {},
            guest_domain=DOMAIN,
        ),
        release=image.release,
        image=image.files,
        secrets={"API_KEY": secret},
        host_id="host",
    )


def new_fleet(home: Path, **changes: Any) -> Fleet:
    """A fleet whose directories are under `home`; not started."""
    parts: dict[str, Any] = {
        "run_dir": home / "run",
        "state_dir": home / "state",
        "binary": QEMU,
        "user": None,
        "accel": Accel.TCG,
        "network": UserNetwork(SUBNET),
        "supervisor": DetachedSupervisor(),
    }
    (home / "state").mkdir(exist_ok=True)
    return Fleet(**(parts | changes))


@asynccontextmanager
async def running_fleet(
    home: Path, *, rows: tuple[Enclave, ...] = (), adopting: bool = True, **changes: Any
) -> AsyncIterator[Fleet]:
    """A started fleet that adopted these rows; let go of at the end, its VMs run on."""
    fleet = new_fleet(home, **changes)
    await fleet.start()
    try:
        if adopting:
            await fleet.adopt(rows)
        yield fleet
    finally:
        await fleet.close()


@asynccontextmanager
async def lone_fleet(home: Path, **changes: Any) -> AsyncIterator[Fleet]:
    """A fleet of which nothing is left at the end, whatever the test did."""
    try:
        async with running_fleet(home, **changes) as fleet:
            yield fleet
    finally:
        async with running_fleet(home):
            pass  # to adopt no rows is to remove every VM


async def until(fleet: Fleet, enclave_id: EnclaveId, holds: Callable[[VmView], bool]) -> VmView:
    """Wait until an enclave's view is so; the test's own timeout ends it."""
    seen = fleet.changed.count
    while not holds(fleet.view(enclave_id)):
        seen = await fleet.changed.beyond(seen)
    return fleet.view(enclave_id)


async def until_printed(fleet: Fleet, enclave_id: EnclaveId, text: bytes) -> bytes:
    """Wait until the console's log shows a text."""
    while text not in (tail := fleet.console_tail(enclave_id, 1 << 20)):
        await asyncio.sleep(0.02)
    return tail


def processes_of(launch_uuid: str) -> list[int]:
    """Every process that was started as this launch."""
    return find_by_option("-uuid", [launch_uuid])[launch_uuid]


async def get(
    fleet: Fleet, vm: Enclave, path: str, *, port: int = 443, headers: str = ""
) -> tuple[int, bytes, str]:
    """GET from a guest's port: status, body, and the SHA-256 of the key of its TLS connection.

    The certificate may be anybody's. Raises OSError, or ValueError for what is no answer.
    """
    ports = (INBOUND_PORT,)
    endpoint = fleet.endpoint(vm, revision(inbound_ports=ports), port)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(
        endpoint.address, endpoint.port, ssl=context if port == 443 else None
    )
    try:
        shown = ""
        if port == 443:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            key = x509.load_der_x509_certificate(der).public_key()
            spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            shown = hashlib.sha256(spki).hexdigest()
        writer.write(f"GET {path} HTTP/1.0\r\nHost: guest\r\n{headers}\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.transport.abort()  # a close waits for the guest's own, and outlives whoever gave up
    if not head:
        raise ValueError("closed without an answer")
    return int(head.split()[1]), body, shown


async def get_json(fleet: Fleet, vm: Enclave, path: str) -> Any:
    """The JSON that a guest answers on its 443. Raises OSError, or ValueError for other things."""
    return json.loads((await get(fleet, vm, path))[1])
