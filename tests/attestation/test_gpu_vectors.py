"""Genuine NVIDIA evidence: what it claims, and that nothing of it can be changed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import pytest

from agent.attestation.evidence import EvidenceError
from agent.attestation.gpu.checks import device_checks
from agent.attestation.gpu.claims import DeviceKind
from agent.attestation.gpu.golden import References, golden_checks
from agent.attestation.gpu.spdm import parse_report
from agent.attestation.gpu.verify import GpuEvidence, verify_gpus
from agent.attestation.roots import NVIDIA_RIM_ROOT
from agent.config import GpuPolicy
from tests.tdx_gpu_vectors import (
    GPU_TIME,
    board_evidence,
    gpu_evidence,
    gpu_evidence_with_invalid_signature,
    needs_blackwell,
    needs_vectors,
)

pytestmark = needs_vectors


def nonce_of(items: Sequence[GpuEvidence]) -> bytes:
    return bytes.fromhex(items[0].nonce)


def refusal(
    items: Sequence[GpuEvidence],
    count: int,
    *,
    nonce: bytes | None = None,
    now: datetime = GPU_TIME,
) -> str:
    with pytest.raises(EvidenceError) as caught:
        verify_gpus(items, nonce_of(items) if nonce is None else nonce, count, now)
    return caught.value.code


def with_report(item: GpuEvidence, report: bytes) -> GpuEvidence:
    return msgspec.structs.replace(item, evidence=base64.b64encode(report).decode())


def test_one_genuine_gpu_claims_its_name_firmware_and_driver():
    items = gpu_evidence("hopper_evidence")
    (gpu,) = verify_gpus(items, nonce_of(items), 1, GPU_TIME)
    assert gpu.kind is DeviceKind.GPU
    assert (gpu.architecture, gpu.chip) == ("HOPPER", "GH100")
    assert gpu.device == "NVIDIA:GH100:48B02DF44660DA06"
    assert (gpu.vbios_version, gpu.driver_version) == ("96.00.A5.00.01", "590.12")
    assert gpu.nonce == nonce_of(items)
    assert [index for index, _digest in gpu.measurements] == list(range(1, 65))
    assert gpu.fwid is not None
    assert gpu.fwid.hex().startswith("956ecf09ee4191f1")


def test_four_genuine_gpus_are_four_devices():
    items = gpu_evidence("multi_gpu_hopper")
    claims = verify_gpus(items, nonce_of(items), 4, GPU_TIME)
    assert len({gpu.device for gpu in claims}) == len({gpu.identity for gpu in claims}) == 4


def test_a_genuine_board_of_a_newer_collector_is_eight_gpus_and_four_switches():
    gpus, switches = board_evidence()
    claims = verify_gpus([*gpus, *switches], nonce_of(gpus), 8, GPU_TIME)
    assert [device.kind for device in claims] == [DeviceKind.GPU] * 8 + [DeviceKind.NVSWITCH] * 4


@needs_blackwell
def test_a_genuine_blackwell_gpu_states_its_firmware():
    items = gpu_evidence("blackwell_evidence")
    (gpu,) = verify_gpus(items, nonce_of(items), 1, GPU_TIME)
    assert (gpu.architecture, gpu.chip) == ("BLACKWELL", "GB100")
    assert gpu.fwid is not None
    assert gpu.fwid.hex().startswith("d090cab1b6e6ffdd")


@pytest.mark.parametrize("count", [0, 1, 3, 5, 8])
def test_as_many_gpus_as_the_deployment_has_must_answer(count: int):
    assert refusal(gpu_evidence("multi_gpu_hopper"), count) == "gpu_count"


def test_one_gpu_cannot_stand_for_two():
    items = gpu_evidence("hopper_evidence")
    assert refusal([items[0], items[0]], 2) == "gpu_distinct"


def test_a_switch_is_told_apart_and_is_no_gpu():
    items = gpu_evidence("switch_evidence_ls10")
    (switch,) = verify_gpus(items, nonce_of(items), 0, GPU_TIME)
    assert switch.kind is DeviceKind.NVSWITCH
    assert (switch.architecture, switch.chip) == ("LS10", "LS_10")
    assert (switch.vbios_version, switch.driver_version) == ("96.10.55.00.01", None)
    assert refusal(items, 1) == "gpu_count"


def test_a_switch_cannot_be_called_a_gpu():
    (switch,) = gpu_evidence("switch_evidence_ls10")
    assert refusal([msgspec.structs.replace(switch, arch="HOPPER")], 1) == "gpu_architecture"


def test_evidence_over_another_nonce_is_refused():
    assert refusal(gpu_evidence("hopper_evidence"), 1, nonce=bytes(32)) == "gpu_nonce"
    assert refusal(gpu_evidence("hopper_evidence"), 1, nonce=b"") == "gpu_nonce"


def test_a_switch_over_another_nonce_than_the_gpus_is_refused():
    items = [*gpu_evidence("hopper_evidence"), *gpu_evidence("switch_evidence_ls10")]
    assert refusal(items, 1) == "gpu_nonce"


def test_the_report_with_an_invalid_signature_is_refused_for_it():
    assert refusal([gpu_evidence_with_invalid_signature()], 1) == "gpu_signature"


def test_a_report_under_another_devices_certificates_is_refused():
    first, second, *_rest = gpu_evidence("multi_gpu_hopper")
    mixed = msgspec.structs.replace(first, certificate=second.certificate)
    assert refusal([mixed], 1) == "gpu_signature"


def test_certificates_are_not_believed_before_their_day():
    now = datetime(2022, 2, 1, tzinfo=UTC)
    assert refusal(gpu_evidence("hopper_evidence"), 1, now=now) == "gpu_chain_expired"


def test_another_root_than_the_pinned_one_is_refused():
    items = gpu_evidence("hopper_evidence")
    with pytest.raises(EvidenceError) as caught:
        verify_gpus(items, nonce_of(items), 1, GPU_TIME, root_spki_sha256="00" * 32)
    assert caught.value.code == "gpu_chain_root"


def test_the_verdict_says_what_was_not_checked():
    items = gpu_evidence("multi_gpu_hopper")
    claims = verify_gpus(items, nonce_of(items), 4, GPU_TIME)
    nothing = References(manifests={}, root_spki_sha256=NVIDIA_RIM_ROOT)
    golden = tuple(golden_checks(claims, nothing, GpuPolicy(), GPU_TIME))
    checks = (*golden, *device_checks(claims, nonce_of(items), 4))
    assert all(check.passed for check in checks)
    codes = [check.code for check in checks]
    assert codes[:4] == ["gpu_rim_not_checked"] * 4
    assert codes.count("gpu_nonce") == 4
    assert codes[-2:] == ["gpu_fwid", "gpu_ocsp_not_checked"]
    assert "(RIM) NV_GPU_DRIVER_GH100_" in checks[0].detail
    assert "(OCSP)" in checks[-1].detail


def test_the_verdict_says_whose_firmware_was_not_compared():
    items = gpu_evidence("switch_evidence_ls10")
    claims = verify_gpus(items, nonce_of(items), 0, GPU_TIME)
    (check,) = [c for c in device_checks(claims, nonce_of(items), 0) if "fwid" in c.code]
    assert check.code == "gpu_fwid_not_checked"
    assert "NVIDIA:LS_10:48B02DFE0092CDDB" in check.detail


@pytest.mark.parametrize(("name", "step"), [("hopper_evidence", 1), ("switch_evidence_ls10", 1)])
def test_every_byte_of_a_genuine_report_counts(name: str, step: int):
    (item,) = gpu_evidence(name)
    report = base64.b64decode(item.evidence)
    count = int(name == "hopper_evidence")
    for at in range(0, len(report), step):
        changed = bytearray(report)
        changed[at] ^= 1 << at % 8
        code = refusal([with_report(item, bytes(changed))], count)
        assert code.startswith(("gpu_signature", "gpu_report", "gpu_measurements", "gpu_opaque"))


def test_a_report_cut_anywhere_or_longer_is_refused():
    (item,) = gpu_evidence("hopper_evidence")
    report = base64.b64decode(item.evidence)
    for size in range(len(report)):
        with pytest.raises(EvidenceError) as caught:
            parse_report(report[:size])
        assert caught.value.code == "gpu_report_truncated"
    with pytest.raises(EvidenceError) as caught:
        parse_report(report + b"\1")
    assert caught.value.code == "gpu_report_trailing_data"


def test_every_byte_of_genuine_certificates_counts():
    (item,) = gpu_evidence("hopper_evidence")
    pem = base64.b64decode(item.certificate)
    for at in range(0, len(pem.rstrip())):
        changed = bytearray(pem)
        changed[at] ^= 1 << at % 8
        other = msgspec.structs.replace(
            item, certificate=base64.b64encode(bytes(changed)).decode()
        )
        assert refusal([other], 1).startswith("gpu_chain_")


@pytest.mark.parametrize("member", ["certificate", "evidence"])
@pytest.mark.parametrize("text", ["", "!", "QQ", "QQ==\n", "QR==", "ä"])
def test_base64_that_is_not_canonical_is_refused(member: str, text: str):
    (item,) = gpu_evidence("hopper_evidence")
    code = refusal([msgspec.structs.replace(item, **{member: text})], 1, nonce=nonce_of([item]))
    wanted = {"gpu_malformed"} if text else {"gpu_report_truncated", "gpu_chain_incomplete"}
    assert code in wanted
