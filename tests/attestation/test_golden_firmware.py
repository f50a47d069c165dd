"""GPUs' firmware and driver against golden values, and where these come from."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from agent.attestation.collateral_cache.answer import VendorAnswer
from agent.attestation.collateral_cache.authentic import Roots, authenticate
from agent.attestation.collateral_cache.cache import CollateralCache
from agent.attestation.collateral_cache.disk_cache import DiskCache
from agent.attestation.collateral_cache.endorser import CachedEndorser
from agent.attestation.collateral_cache.items import Rim, name_of, path_of
from agent.attestation.collateral_cache.vendor import Vendors
from agent.attestation.document import DeviceItem
from agent.attestation.evidence import EvidenceError
from agent.attestation.manifest_name import ManifestName
from agent.attestation.policy import EvidencePolicy
from agent.attestation.port import NotYetError
from agent.attestation.roots import Trust
from agent.attestation.verifier import Verifier
from agent.config import AttestationConfig, GpuPolicy, VbiosMinimum
from agent.model.resources import Demand
from simulator.manual_clock import ManualClock
from simulator.rows import enclave, release
from tests.attestation.test_tdx_guests import GOOD, LiveGuest, failed
from tests.attestation.test_verifier import Served
from tests.fakes.attested_guest import NONCE
from tests.fakes.nvidia import GPU_FIELDS, NOW
from tests.fakes.nvidia_rim import DRIVER_GOLDEN, VBIOS_GOLDEN, FakeRimSigner
from tests.fakes.snp_chain import FakeAmd
from tests.fakes.tdx_guest import TdxGuest, device, gpu_item, intel, nvidia, switch_item
from tests.fakes.vendors import FakeVendors, serve_vendors

DRIVER, VBIOS = "NV_GPU_DRIVER_GH100_590.12", "NV_GPU_VBIOS_G520_0200_885_9600A50001"
VBIOS_NAME = ManifestName(VBIOS, "GH100", "96.00.A5.00.01")
OTHER = b"\xcc" * 48


@cache
def signer() -> FakeRimSigner:
    return FakeRimSigner()


@cache
def ended() -> FakeRimSigner:
    return FakeRimSigner(leaf_end=NOW - timedelta(days=30))


def vbios(golden: Mapping[int, Any] = VBIOS_GOLDEN, by: FakeRimSigner | None = None) -> bytes:
    return (by or signer()).manifest(golden)


def driver(golden: Mapping[int, Any] = DRIVER_GOLDEN, by: FakeRimSigner | None = None) -> bytes:
    return (by or signer()).manifest(golden, version="590.12")


@cache
def _both() -> tuple[tuple[str, bytes], ...]:
    return (DRIVER, driver()), (VBIOS, vbios())


def both() -> dict[str, bytes]:
    """The same at each call, which signatures are not."""
    return dict(_both())


def trust(by: FakeRimSigner) -> Trust:
    return Trust(intel=intel().root, nvidia=nvidia().root, nvidia_rim=by.root)


def guest(
    manifests: Callable[[], Mapping[str, bytes]] = both,
    by: Callable[[], FakeRimSigner] = signer,
    items: Callable[[], Any] = lambda: [gpu_item(1)],
    **policy: Any,
) -> TdxGuest:
    config = msgspec.structs.replace(GOOD.config, gpu=GpuPolicy(**policy))
    expected = msgspec.structs.replace(GOOD.expected, gpus=1)
    return GOOD.but(
        items=items,
        expected=expected,
        config=config,
        manifests=manifests,
        trust=lambda: trust(by()),
    )


def said(one: TdxGuest) -> dict[str, str]:
    """The devices' checks on golden values, by code; one device gives each once."""
    verdict = one.judged(one.v3())
    return {c.code: c.detail for c in verdict.checks if c.code.startswith(("gpu_rim", "gpu_vb"))}


def refused(one: TdxGuest) -> list[str]:
    verdict = one.judged(one.v3())
    assert verdict.admits == (not failed(verdict))
    return failed(verdict)


def test_a_gpu_whose_every_measurement_is_golden_is_believed():
    one = guest(require_rim=True)
    assert refused(one) == []
    assert list(said(one)) == ["gpu_rim"]
    assert f"2 of 2 measurements as in {VBIOS}" in said(one)["gpu_rim"]
    assert f"2 of 2 measurements as in {DRIVER}" in said(one)["gpu_rim"]


@pytest.mark.parametrize(
    ("golden", "where"),
    [
        ({**VBIOS_GOLDEN, 1: [OTHER]}, "index 1 "),
        ({0: [OTHER], 1: [OTHER]}, "index 0, 1 "),
        ({**VBIOS_GOLDEN, 40: [bytes(48)]}, "index 40 "),  # the report has no such measurement
    ],
)
def test_a_measurement_that_is_none_of_the_golden_values_is_refused(golden: Any, where: str):
    one = guest(lambda: {DRIVER: driver(), VBIOS: vbios(golden)})
    assert refused(one) == ["gpu_rim"]
    assert f"{where}are not those of {VBIOS}" in said(one)["gpu_rim"]


def test_a_measurement_of_another_place_is_not_the_one_of_this():
    """Manifests count from 0, reports from 1."""
    shifted = {index + 1: values for index, values in VBIOS_GOLDEN.items()}
    assert refused(guest(lambda: {VBIOS: vbios(shifted)})) == ["gpu_rim"]


def test_two_manifests_that_claim_one_measurement_are_refused():
    one = guest(lambda: {DRIVER: driver({1: [b"\x02" * 48]}), VBIOS: vbios()})
    assert refused(one) == ["gpu_rim_conflict"]


@pytest.mark.parametrize(
    ("have", "missing"),
    [
        (dict, [DRIVER, VBIOS]),
        (lambda: {VBIOS: vbios()}, [DRIVER]),
        (lambda: {DRIVER: driver()}, [VBIOS]),
    ],
    ids=["none", "no driver's", "no VBIOS'"],
)
def test_what_is_not_to_be_had_is_said_and_refused_where_it_is_demanded(have, missing):
    assert refused(guest(have)) == []
    told = said(guest(have))["gpu_rim_not_checked"]
    assert all(name in told for name in missing)
    assert ("gpu_rim" in said(guest(have))) == bool(have())
    assert refused(guest(have, require_rim=True)) == ["gpu_rim_not_checked"]
    assert "require_rim" in said(guest(have, require_rim=True))["gpu_rim_not_checked"]


def test_a_report_that_names_no_manifest_is_not_checked():
    def nameless() -> list[dict[str, Any]]:
        fields = {6: bytes.fromhex("00a5009601000000"), 3: b"590.12\0", 20: b"\x95" * 48}
        return [
            gpu_item(1, evidence=msgspec.to_builtins(device(1).evidence(NONCE, fields=fields)))
        ]

    assert refused(guest(items=nameless)) == []
    assert "does not name every" in said(guest(items=nameless))["gpu_rim_not_checked"]
    assert refused(guest(items=nameless, require_rim=True)) == ["gpu_rim_not_checked"]


def _of_ended() -> dict[str, bytes]:
    return {DRIVER: driver(by=ended()), VBIOS: vbios(by=ended())}


def test_a_manifest_whose_certificate_ended_counts_where_that_is_allowed():
    one = guest(_of_ended, ended)
    assert refused(one) == []
    assert (
        "ended on 2026-01-30 (attestation.gpu.allow_expired_rim)"
        in said(one)["gpu_rim_not_checked"]
    )
    assert "gpu_rim" not in said(one)
    assert refused(guest(_of_ended, ended, require_rim=True)) == ["gpu_rim_not_checked"]
    allowed = guest(_of_ended, ended, require_rim=True, allow_expired_rim=True)
    assert refused(allowed) == []
    assert "ended on 2026-01-30" in said(allowed)["gpu_rim"]


@pytest.mark.parametrize("allow", [False, True])
def test_what_differs_from_a_manifest_is_refused_whenever_its_certificate_ended(allow: bool):
    one = guest(lambda: {VBIOS: vbios({0: [OTHER]}, by=ended())}, ended, allow_expired_rim=allow)
    assert refused(one) == ["gpu_rim"]


def test_switches_are_held_against_their_own_manifest():
    name = "NV_SWITCH_BIOS_5612_0002_890_9610550001"
    golden = signer().manifest(VBIOS_GOLDEN, product="LS10", version="96.10.55.00.01")

    def items() -> list[dict[str, Any]]:
        return [gpu_item(1), switch_item(2)]

    one = guest(lambda: {**both(), name: golden}, items=items, require_rim=True)
    assert refused(one) == []
    wrong = signer().manifest({0: [OTHER]}, product="LS10", version="96.10.55.00.01")
    assert refused(guest(lambda: {**both(), name: wrong}, items=items)) == ["gpu_rim"]
    assert refused(guest(items=items, require_rim=True)) == ["gpu_rim_not_checked"]


@pytest.mark.parametrize(
    ("policy", "codes"),
    [
        ({"minimum_driver": "590.12"}, []),
        ({"minimum_driver": "590.9"}, []),
        ({"minimum_driver": "590.12.01"}, ["gpu_driver_minimum"]),
        ({"minimum_driver": "600.0"}, ["gpu_driver_minimum"]),
        ({"minimum_vbios": VbiosMinimum(hopper="96.00.A5.00.01")}, []),
        ({"minimum_vbios": VbiosMinimum(hopper="96.00.9F.00.09")}, []),
        ({"minimum_vbios": VbiosMinimum(hopper="96.00.A5.00.02")}, ["gpu_vbios_minimum"]),
        ({"minimum_vbios": VbiosMinimum(blackwell="97.00.00.00.00")}, []),
        ({"minimum_vbios": VbiosMinimum(nvswitch="97.00.00.00.00")}, []),
    ],
)
def test_drivers_and_vbioses_have_their_minimum(policy: Any, codes: list[str]):
    assert refused(guest(**policy)) == codes


def test_a_version_that_is_none_is_never_new_enough():
    def items() -> list[dict[str, Any]]:
        fields = {**GPU_FIELDS, 3: b"newest\0"}
        return [
            gpu_item(1, evidence=msgspec.to_builtins(device(1).evidence(NONCE, fields=fields)))
        ]

    assert refused(guest(items=items, minimum_driver="1.0")) == ["gpu_driver_minimum"]


def test_golden_values_of_another_root_are_simulated():
    one = guest().but(allow_simulated=False)
    assert failed(one.judged(one.v3())) == ["genuine_root", "gpu_genuine_root"]
    assert refused(guest(by=ended)) == ["gpu_rim_root"]


# Where they come from.


def roots() -> Roots:
    return Roots(amd=trust(signer()), intel_spki_sha256=intel().root)


def answer(manifest: bytes) -> Callable[[web.Request], web.Response]:
    """As NVIDIA's service answers."""
    body = {"id": "it", "rim": base64.b64encode(manifest).decode(), "rim_format": "SWIDTAG"}
    return lambda _: web.Response(body=json.dumps(body).encode())


class Life:
    """One life of the cache over a state directory."""

    def __init__(
        self,
        tmp_path: Path,
        vendors: FakeVendors | None = None,
        *,
        directory: Path | None = None,
        require_rim: bool = False,
        root: Callable[[], str] = lambda: signer().root,
    ) -> None:
        def roots() -> Roots:
            amd = replace(trust(signer()), nvidia_rim=root())
            return Roots(amd=amd, intel_spki_sha256=intel().root)

        self.clock = ManualClock()
        self.clock.jump_wall((NOW - self.clock.now().wall).total_seconds())
        disk = DiskCache(tmp_path / "collateral")
        tls: ssl.SSLContext | None = vendors.trust if vendors else None
        self.cache = CollateralCache(
            disk_cache=disk,
            vendors=Vendors(vendors.urls, tls=tls) if vendors else None,
            roots=roots,
            clock=self.clock,
            directory=DiskCache(directory) if directory else None,
            chance=lambda: 0.5,
        )
        self.endorser = CachedEndorser(
            self.cache, disk, roots, self.clock, require_rim=require_rim
        )

    async def manifests(self, *items: dict[str, Any]) -> Mapping[str, bytes]:
        devices = [DeviceItem(**item) for item in items or (gpu_item(1),)]
        return await self.endorser.manifests(devices)


@pytest.fixture
async def vendors(tmp_path: Path) -> AsyncIterator[FakeVendors]:
    directory = tmp_path / "tls"
    directory.mkdir()
    async with serve_vendors(directory, FakeAmd(), intel()) as serving:
        yield serving


async def test_manifests_are_asked_for_once_and_survive_a_restart(
    tmp_path: Path, vendors: FakeVendors
):
    for name, manifest in both().items():
        vendors.instead[f"/v1/rim/{name}"] = answer(manifest)
    life = Life(tmp_path, vendors)
    assert await life.manifests(gpu_item(1), gpu_item(2)) == both()
    assert await life.manifests() == both()
    await life.cache.close()
    assert vendors.asked() == {f"/v1/rim/{VBIOS}": 1, f"/v1/rim/{DRIVER}": 1}
    assert await Life(tmp_path).manifests() == both()


async def test_a_manifest_that_ended_is_kept_and_one_signed_anew_is_looked_for(
    tmp_path: Path, vendors: FakeVendors
):
    old, path = FakeRimSigner(leaf_end=NOW + timedelta(days=32)), f"/v1/rim/{VBIOS}"
    vendors.instead[path] = answer(vbios(by=old))
    life = Life(tmp_path, vendors, root=lambda: old.root)
    kept = await life.cache.get(Rim(VBIOS_NAME))
    assert kept is not None
    for days, asked in ((1, 1), (2, 2), (0.5, 2), (0.6, 3)):
        life.clock.advance(days * 86400)
        await life.cache.refresh_due()
        assert vendors.asked()[path] == asked
        assert await life.cache.get(Rim(VBIOS_NAME)) is not None
    await life.cache.close()


async def test_an_operator_s_file_is_the_manifest_itself(tmp_path: Path):
    directory = tmp_path / "theirs"
    directory.mkdir()
    given = vbios()
    (directory / "nvidia-rim-nv_gpu_vbios_g520_0200_885_9600a50001").write_bytes(given)
    assert await Life(tmp_path, directory=directory).manifests() == {VBIOS: given}


@pytest.mark.parametrize(
    "manifest",
    [
        lambda: vbios().replace(b"0101", b"0102", 1),
        lambda: vbios(by=ended()),
        lambda: signer().manifest(VBIOS_GOLDEN, version="96.00.A5.00.02"),
        lambda: signer().manifest(VBIOS_GOLDEN, product="GB100"),
        lambda: b'{"rim": 1}',
        lambda: b'{"rim": "not base64"}',
        lambda: b"{" * 5000,
        lambda: b"",
    ],
    ids=["changed", "root", "version", "chip", "number", "base64", "nesting", "empty"],
)
async def test_a_manifest_that_does_not_hold_is_as_good_as_none(
    tmp_path: Path, manifest: Callable[[], bytes]
):
    directory = tmp_path / "theirs"
    directory.mkdir()
    item = Rim(VBIOS_NAME)
    (directory / name_of(item)).write_bytes(manifest())
    life = Life(tmp_path, directory=directory)
    assert await life.manifests() == {}
    with pytest.raises(EvidenceError):
        authenticate(item, VendorAnswer(body=manifest()), None, roots(), NOW)


async def test_a_service_that_is_busy_is_waited_for_only_where_manifests_are_demanded(
    tmp_path: Path, vendors: FakeVendors
):
    for name in (VBIOS, DRIVER):
        vendors.instead[f"/v1/rim/{name}"] = lambda _: web.Response(status=503)
    patient, strict = Life(tmp_path, vendors), Life(tmp_path, vendors, require_rim=True)
    assert await patient.manifests() == {}
    with pytest.raises(NotYetError):
        await strict.manifests()
    for life in (patient, strict):
        await life.cache.close()


async def test_devices_that_are_not_genuine_ask_nobody(tmp_path: Path, vendors: FakeVendors):
    life, item = Life(tmp_path, vendors), gpu_item(1)
    report = bytearray(base64.b64decode(item["evidence"]["evidence"]))
    report[-1] ^= 1
    item["evidence"]["evidence"] = base64.b64encode(report).decode()
    with pytest.raises(EvidenceError):
        await life.manifests(item)
    await life.cache.close()
    assert not vendors.seen


def test_a_name_is_a_file_s_and_a_path_of_its_own():
    assert name_of(Rim(VBIOS_NAME)) == "nvidia-rim-nv_gpu_vbios_g520_0200_885_9600a50001"
    assert path_of(Rim(VBIOS_NAME)) == f"/{VBIOS}"


@pytest.mark.parametrize(
    ("manifest", "codes"),
    [(vbios, []), (lambda: vbios({0: [OTHER]}), ["gpu_rim"]), (None, [])],
    ids=["golden", "not golden", "none"],
)
async def test_the_live_gate_has_the_manifests_of_its_guests_gpus(
    tmp_path: Path, manifest: Callable[[], bytes] | None, codes: list[str]
):
    directory = tmp_path / "theirs"
    directory.mkdir()
    if manifest is not None:
        (directory / name_of(Rim(VBIOS_NAME))).write_bytes(manifest())
    life = Life(tmp_path, directory=directory)
    gate = Verifier(
        policy=EvidencePolicy(config=GOOD.config, allow_simulated=True),
        trust=trust(signer()),
        clock=life.clock,
        endorser=life.endorser,
    )
    served = Served(LiveGuest())
    registers = {"rtmr1": "01" * 48, "rtmr2": "02" * 48}
    one = release(tdx_measurement=registers, demand=Demand(memory_mib=256, vcpus=1, gpus=1))
    try:
        endpoint = await served.start()
        verdict = await gate.verify(enclave(), one, endpoint, served.identity.spki_sha256)
    finally:
        await served.stop()
    assert failed(verdict) == codes
    named = {check.code for check in verdict.checks if check.code.startswith("gpu_rim")}
    assert named == ({"gpu_rim", "gpu_rim_not_checked"} if manifest else {"gpu_rim_not_checked"})


def test_the_policy_asks_for_nothing_by_default():
    assert AttestationConfig().gpu == GpuPolicy()
    assert not GpuPolicy().require_rim
