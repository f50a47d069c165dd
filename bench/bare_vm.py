"""A bare QEMU start of a release's image: the agent's argv, and nothing of the agent besides."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import ExitStack

from agent.config import NetworkMode
from agent.enclaves.argv import build_argv
from agent.enclaves.disks import disk_bytes
from agent.enclaves.external_config import ExternalConfig, Metadata, render
from agent.enclaves.network import Network
from agent.enclaves.network_tap import TapNetwork
from agent.enclaves.network_user import UserNetwork
from agent.enclaves.spec import Disk, InheritedFile, Nic, PlainTee, VmAccel, VmSpec
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId
from agent.model.release import LocalImage, Release
from agent.model.resources import GUEST_HTTPS_PORT
from agent.probes.choice import choose_path
from bench.first_answer import healthy
from bench.place import Place

ENCLAVE = EnclaveId("bareqemu")


class BareVm:
    """Starts of one image, each on the same card and address."""

    def __init__(
        self,
        place: Place,
        release: Release,
        image: LocalImage,
        network: Network,
        accel: str,
        enclave: EnclaveId = ENCLAVE,
    ) -> None:
        self._enclave = enclave
        self._release = release
        self._image = image
        self._network = network
        self._accel = VmAccel(accel)
        self._address = network.addresses()[0]
        self._ports = (GUEST_HTTPS_PORT, *release.inbound_ports)
        self._qmp = place.bare_qmp

    def endpoint(self, port: int = GUEST_HTTPS_PORT) -> Endpoint:
        """Where the host reaches a port of it."""
        return self._network.endpoint(self._address, port, self._ports)

    @contextlib.asynccontextmanager
    async def card(self) -> AsyncIterator[Nic]:
        """Its network card, also for another VM of this image after it."""
        nic = await self._network.attach(ENCLAVE, self._address, self._ports)
        try:
            yield nic
        finally:
            await asyncio.shield(self._network.detach(ENCLAVE))

    def command(self, nic: Nic, held: ExitStack) -> tuple[list[str], tuple[int, ...]]:
        """QEMU's command, and the descriptors that it inherits, open as long as they are held."""
        fds = self._open(held)
        return build_argv("qemu-system-x86_64", self._spec(nic, fds)), fds

    async def start(self) -> float:
        """Seconds from the spawn to the first healthy answer. The VM is gone afterwards.

        Everything that is not QEMU's own (files opened, disks built, link made) comes before.
        """
        async with self.card() as nic:
            with ExitStack() as held:
                argv, fds = self.command(nic, held)
                began = time.monotonic()
                process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--", *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=fds,
                )
            try:
                path = choose_path(self._release.shim, None)
                assert path is not None
                await healthy(self.endpoint(), path)
                return time.monotonic() - began
            finally:
                process.kill()
                process.wait()

    def _open(self, held: ExitStack) -> tuple[int, ...]:
        """Kernel, initrd, root disk, config disk, external config disk."""

        def keep(fd: int) -> int:
            held.callback(os.close, fd)
            return fd

        image = self._image
        files = [
            keep(os.open(p, os.O_RDONLY)) for p in (image.kernel, image.initrd, image.root_disk)
        ]
        external = render(
            ExternalConfig(
                metadata=Metadata(
                    id=self._enclave,
                    domain="",
                    image=self._release.cvm_version,
                    cpu=self._accel.value,
                    gpu="",
                    repo=self._release.repo,
                    tag=self._release.tag,
                    digest=f"sha256:{self._release.digest}",
                ),
                network=self._network.guest_address(self._address),
            )
        )
        disks = [keep(_memory_disk(disk_bytes(data))) for data in (self._release.config, external)]
        return (*files, *disks)

    def _spec(self, nic: Nic, fds: tuple[int, ...]) -> VmSpec:
        kernel, initrd, *disks = map(InheritedFile, fds)
        self._qmp.unlink(missing_ok=True)
        return VmSpec(
            enclave_id=self._enclave,
            launch_uuid=str(uuid.uuid4()),
            layout=self._release.layout,
            accel=self._accel,
            tee=PlainTee(),
            memory_mib=self._release.demand.memory_mib,
            vcpus=self._release.demand.vcpus,
            kernel=kernel,
            initrd=initrd,
            cmdline=self._release.cmdline,
            root_disk=Disk(disks[0]),
            config_disk=Disk(disks[1]),
            external_config_disk=Disk(disks[2]),
            nic=nic,
            qmp_socket=self._qmp,
        )


def _memory_disk(data: bytes) -> int:
    fd = os.memfd_create("bare")
    try:
        os.write(fd, data)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    finally:
        os.close(fd)


@contextlib.asynccontextmanager
async def bare_network(place: Place, kind: str) -> AsyncIterator[Network]:
    """A network of the agent's kind, but not the agent's own; it goes with the block."""
    network: Network
    if kind == NetworkMode.TAP:
        bridge, subnet = place.bare_bridge, place.subnet(1)
        instance = str(place.state / "bare")
        network = TapNetwork(bridge, subnet, instance=instance, gated=False)  # no table of ours
    else:
        network = UserNetwork(place.bare_loopback)
    await network.start()
    try:
        yield network
    finally:
        await asyncio.shield(network.restore())
