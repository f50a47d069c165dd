"""What keeps a confidential launch from being made, told all at once with its mend."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import msgspec
import pytest

from agent.config import Tee
from agent.enclaves.preflight import Ground, Need, PreflightError, lacks_of
from agent.enclaves.quotes import quotes_fault, read_quote_service
from agent.enclaves.spec import SpecError, UnixQuotes, VsockQuotes
from agent.host.units import LendError
from agent.model.gpu import Gpu
from agent.model.ids import Bdf
from agent.model.inventory import HostInventory, TeeIds
from agent.model.pci import Bar, GroupMember, PciKind

ONE = Bdf("0000:18:00.0")
HOST = HostInventory(
    mem_available_mib=600_000,
    tee_ids=(
        TeeIds(kind="sev-snp", total=99, used=3),
        TeeIds(kind="tdx", total=31, used=0),
    ),
    sev_snp=True,
    tdx=True,
    kvm=True,
    sev=True,
    iommufd=True,
)
CARD = Gpu(
    bdf=ONE,
    iommu_group=7,
    group=(
        GroupMember(bdf=ONE, kind=PciKind.GPU, driver="vfio-pci"),
        GroupMember(bdf=Bdf("0000:18:00.1"), kind=PciKind.AUDIO, driver="vfio-pci"),
    ),
    driver="vfio-pci",
    vfio_device="vfio0",
    clean=True,
)
GROUND = Ground(host=HOST, reserve_mib=2048, devices={ONE: CARD})
NEED = Need(tee=Tee.SEV_SNP, memory_mib=65536, devices=(ONE,), prepared=True)


def on(**changes: object) -> Ground:
    return dataclasses.replace(GROUND, host=msgspec.structs.replace(HOST, **changes))


def with_card(**changes: object) -> Ground:
    card = msgspec.structs.replace(CARD, **changes)
    return dataclasses.replace(GROUND, devices={ONE: card})


@pytest.mark.parametrize("tee", [Tee.SEV_SNP, Tee.TDX])
def test_a_host_that_has_everything_lacks_nothing(tee: Tee) -> None:
    assert lacks_of(dataclasses.replace(NEED, tee=tee), GROUND) == []


@pytest.mark.parametrize("driver", ["nvgrace_gpu_vfio_pci", "nvgrace-gpu-vfio-pci"])
def test_a_device_that_a_variant_of_vfio_has_is_prepared(driver: str) -> None:
    assert lacks_of(NEED, with_card(driver=driver)) == []


BOARD = tuple(Bdf(f"0000:{0x20 + n:02x}:00.0") for n in range(12))


def on_a_board(disks: int, **changes: object) -> tuple[Need, Ground]:
    """A whole Hopper board in a trust domain, with so many models."""
    cards = {
        bdf: msgspec.structs.replace(
            CARD,
            bdf=bdf,
            device=0x2330 if n < 8 else 0x22A3,
            is_switch=n >= 8,
            group=(GroupMember(bdf=bdf, kind=PciKind.GPU, driver="vfio-pci"),),
        )
        for n, bdf in enumerate(BOARD)
    }
    need = dataclasses.replace(
        NEED, tee=Tee.TDX, devices=BOARD, data_disks=disks, ports_by_board=True
    )
    return dataclasses.replace(need, **changes), dataclasses.replace(GROUND, devices=cards)


def test_models_that_have_no_place_beside_the_root_ports_are_told() -> None:
    assert lacks_of(*on_a_board(15)) == []
    (lack,) = lacks_of(*on_a_board(16))
    assert (lack.code, "for 15" in lack.detail) == ("disks_do_not_fit", True)
    assert lacks_of(*on_a_board(16, tee=Tee.SEV_SNP)) == []
    assert lacks_of(*on_a_board(16, ports_by_board=False)) == []


STRANGER = GroupMember(bdf=Bdf("0000:19:00.0"), kind=PciKind.OTHER, driver="ice")
FULL = (TeeIds(kind="sev-snp", total=3, used=3),)
CASES = {
    "tee off": (on(sev_snp=False), "tee_unavailable", "kvm_amd.sev_snp=1"),
    "tee not known": (on(sev_snp=None), "tee_unavailable", "kvm_amd.sev_snp=1"),
    "no /dev/sev": (on(sev=False), "tee_unavailable", "modprobe ccp"),
    "no kvm": (on(kvm=False), "tee_unavailable", "load KVM's module"),
    "ids used up": (on(tee_ids=FULL), "tee_ids_exhausted", "stop an enclave"),
    "ids not known": (on(tee_ids=()), "tee_ids_exhausted", "misc controller"),
    "little memory": (on(mem_available_mib=68095), "memory_insufficient", "reserve.memory_mib"),
    "memory not known": (on(mem_available_mib=None), "memory_insufficient", "reserve"),
    "no iommufd": (on(iommufd=False), "iommufd_missing", "modprobe iommufd"),
    "locked memory": (
        dataclasses.replace(GROUND, memory_lockable=False),
        "memory_not_lockable",
        "LimitMEMLOCK=infinity",
    ),
    "old qemu": (
        dataclasses.replace(GROUND, unable=("7.2.9: it has no object sev-snp-guest",)),
        "qemu_unfit",
        "qemu.binary",
    ),
    "no firmware": (
        dataclasses.replace(GROUND, firmware_fault="no file of /fw has that SHA-256"),
        "firmware_missing",
        "docs/hardware.md",
    ),
    "gpu gone": (dataclasses.replace(GROUND, devices={}), "gpu_unknown", "reseat"),
    "no group": (with_card(iommu_group=None), "iommu_group_not_viable", "iommu=on"),
    "shared group": (
        with_card(group=(*CARD.group, STRANGER)),
        "iommu_group_not_viable",
        "from their drivers",
    ),
    "no room for its memory": (
        with_card(bars=(Bar(index=0, size_bytes=16 << 20, is_64bit=True, prefetchable=True),)),
        "gpu_without_address_space",
        "above-4G decoding",
    ),
    "not clean": (with_card(clean=False), "gpus_dirty", "not clean"),
    "another driver": (with_card(driver="nvidia"), "gpus_dirty", "enclave-agent gpus"),
    "no vfio file": (with_card(vfio_device=None), "vfio_node_missing", "VFIO_DEVICE_CDEV"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_lack_is_told_with_what_mends_it(name: str) -> None:
    ground, code, mend = CASES[name]
    (lack,) = lacks_of(NEED, ground)
    assert lack.code == code
    assert mend in lack.mend
    assert str(PreflightError([lack])) == f"{lack.detail} ({lack.mend})"


def test_a_trust_domain_without_a_quote_service_is_not_launched() -> None:
    ground = dataclasses.replace(GROUND, quotes_fault="the quote service cannot be reached")
    need = dataclasses.replace(NEED, tee=Tee.TDX)
    (lack,) = lacks_of(need, ground)
    assert (lack.code, "qgsd" in lack.mend) == ("quotes_unreachable", True)
    (off,) = lacks_of(need, on(tdx=False))
    assert "kvm_intel.tdx=1" in off.mend


def test_what_another_enclave_still_holds_is_not_asked_for_twice() -> None:
    ground = on(mem_available_mib=100, tee_ids=FULL)
    assert lacks_of(dataclasses.replace(NEED, inherits=True), ground) == []
    assert len(lacks_of(NEED, ground)) == 2


def test_gpus_need_not_be_prepared_before_anybody_prepared_them() -> None:
    assert lacks_of(dataclasses.replace(NEED, prepared=False), with_card(driver="nvidia")) == []


@pytest.mark.parametrize(
    ("driver", "node", "made", "told"),
    [
        ("vfio-pci", None, None, True),  # the old enclave still has it
        ("nvgrace_gpu_vfio_pci", None, None, True),
        ("vfio-pci", "vfio7", False, False),  # it is there, whatever else is told
        ("nvidia", None, False, True),
        (None, None, False, True),
        ("nvidia", None, None, False),  # vfio is not loaded yet
        ("nvidia", None, True, False),
    ],
)
def test_a_kernel_without_files_for_vfio_devices_is_told_before_anything_is_stopped(
    driver: str | None, node: str | None, made: bool | None, told: bool
) -> None:
    ground = dataclasses.replace(
        with_card(driver=driver, vfio_device=node),
        host=msgspec.structs.replace(HOST, vfio_nodes=made),
    )
    lacks = lacks_of(dataclasses.replace(NEED, prepared=False), ground)
    assert [one.code for one in lacks] == ["vfio_node_missing"] * told


def test_everything_that_is_wrong_is_told_at_once() -> None:
    ground = dataclasses.replace(on(sev_snp=False, iommufd=False), memory_lockable=False)
    error = PreflightError(lacks_of(NEED, ground))
    assert [one.code for one in error.lacks] == [
        "tee_unavailable",
        "iommufd_missing",
        "memory_not_lockable",
    ]
    assert error.code == "tee_unavailable"
    assert all(one.mend in str(error) for one in error.lacks)


async def test_a_quote_service_is_reached_or_it_is_told_why_not(tmp_path: Path) -> None:
    path = tmp_path / "qgs"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert await quotes_fault(UnixQuotes(path)) is None
    fault = await quotes_fault(UnixQuotes(path))
    assert fault is not None
    assert str(path) in fault
    gone = await quotes_fault(UnixQuotes(tmp_path / "none"))
    assert gone is not None
    assert "No such file" in gone
    nobody = await quotes_fault(VsockQuotes(2, 40509))
    assert nobody is not None
    assert "vsock 2:40509" in nobody


def test_where_quotes_are_made_is_read_strictly() -> None:
    assert read_quote_service("vsock:2:4050") == VsockQuotes(2, 4050)
    assert read_quote_service("/run/qgs") == UnixQuotes(Path("/run/qgs"))
    for wrong in ("vsock:2", "vsock:2:0", "relative", ""):
        with pytest.raises(SpecError):
            read_quote_service(wrong)


async def test_a_port_of_the_machine_is_dialled_by_a_unit_that_may() -> None:
    asked: list[tuple[str, ...]] = []
    ours, theirs = socket.socketpair()

    async def lend(*words: str) -> int:
        asked.append(words)
        if words[1] != "2":
            raise LendError("Connection reset by peer")
        return theirs.detach()

    with ours, theirs:
        assert await quotes_fault(VsockQuotes(2, 4050), lend) is None
        assert ours.recv(1) == b"", "its connection was closed"
    fault = await quotes_fault(VsockQuotes(3, 4050), lend)
    assert fault == "the quote service at vsock 3:4050 cannot be reached: Connection reset by peer"
    assert asked == [("dial", "2", "4050"), ("dial", "3", "4050")]
