"""Whether devices are in the mode, and on the one board, that they should be: every check. Pure.

Source: NVIDIA/nvtrust, spdm_msrt_resp_msg.py (opaque fields 21 and 22, 34 to 36 of a GPU) and the
attestation SDK (22, 25 and 26 of a switch); google/go-nvattest-tools, ppcie (what a board is);
the genuine board of the vectors. A GPU in protected-PCIe mode lists the switch at the other end of
each of its links, a byte-reversed id each, zeros where the link is off. A switch lists the GPUs at
its ports: eight ids as they stand in the GPUs' certificates, then which port leads to which.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from agent.attestation.gpu.claims import BoardClaims, DeviceKind, Feature, GpuClaims
from agent.attestation.port import Check, not_checked
from agent.model.gpu import CcMode

_PCIE_STATUS, _DEVICE_IDS, _LOCK, _GPU_IDS, _FEATURE = 21, 22, 25, 26, 36
_ID_BYTES, _GPUS_LISTED = 8, 8
_ON, _LOCKED = 0xAA, 1
_CODE = "gpu_mode"


def read_board(opaque: Mapping[int, bytes], kind: DeviceKind) -> BoardClaims:
    """Out of a report's opaque fields. What has not the size that it should have tells nothing."""
    ids = opaque.get(_DEVICE_IDS, b"")
    if kind is DeviceKind.NVSWITCH:
        own = frozenset({ids}) if len(ids) == _ID_BYTES else frozenset[bytes]()
        gpus = _gpus_of_switch(opaque.get(_GPU_IDS, b""))
        return BoardClaims(lock=_number(opaque.get(_LOCK)), ids=own, gpus=gpus)
    status = opaque.get(_PCIE_STATUS)
    return BoardClaims(
        feature=_number(opaque.get(_FEATURE)),
        protected_pcie=status == bytes([_ON]) if status else None,
        ids=_reversed(ids),
    )


def board_checks(devices: Sequence[GpuClaims], mode: CcMode | None) -> Iterator[Check]:
    """`mode`: the one that the GPUs were given away in; None: whichever they say themselves."""
    gpus = [one for one in devices if one.kind is DeviceKind.GPU]
    switches = [one for one in devices if one.kind is DeviceKind.NVSWITCH]
    if not gpus:
        return
    yield _mode(gpus, mode)
    if len(gpus) > 1:
        yield _one_architecture(gpus)
    said = any(one.board.on_a_board for one in gpus)
    if mode is CcMode.PPCIE or (mode is None and said):
        yield _switches(gpus, switches)
        yield _gpus_at_switches(gpus, switches)
        yield _locked(switches)


def _mode(gpus: Sequence[GpuClaims], mode: CcMode | None) -> Check:
    told = "; ".join(f"{one.device}: {_shown(one.board)}" for one in gpus)
    silent = [one for one in gpus if one.board.on_a_board is None]
    match mode:
        case CcMode.PPCIE:
            passed = all(one.board.on_a_board for one in gpus)
            return Check(code=_CODE, passed=passed, detail=f"{told}; PPCIE is wanted")
        case CcMode.ON:
            wanted = {Feature.SPT} if len(gpus) == 1 else {Feature.SPT, Feature.MPT}
            passed = all(_alone(one.board, wanted) for one in gpus) and _alike(gpus)
            names = " or ".join(sorted(one.name for one in wanted))
            detail = f"{told}; {names} is wanted, the same of all"
        case _:
            passed, detail = _alike(gpus), f"{told}; the same is wanted of all"
    if passed and silent:
        return not_checked(f"{_CODE}_not_checked", told)
    return Check(code=_CODE, passed=passed, detail=detail)


def _alone(board: BoardClaims, wanted: set[Feature]) -> bool:
    """An older report that says nothing passes, and is told as not checked."""
    if board.feature is None:
        return not board.protected_pcie
    return board.feature in wanted


def _alike(gpus: Sequence[GpuClaims]) -> bool:
    return len({(one.board.feature, one.board.protected_pcie) for one in gpus}) == 1


def _shown(board: BoardClaims) -> str:
    if board.feature is not None:
        known = [one.name for one in Feature if one == board.feature]
        return known[0] if known else f"feature {board.feature}, which is not known"
    if board.protected_pcie is None:
        return "its report does not say its mode"
    return "PPCIE" if board.protected_pcie else "not PPCIE"


def _one_architecture(gpus: Sequence[GpuClaims]) -> Check:
    found = sorted({one.architecture for one in gpus})
    detail = f"the GPUs are of {', '.join(found)}"
    return Check(code="gpu_one_architecture", passed=len(found) == 1, detail=detail)


def _switches(gpus: Sequence[GpuClaims], switches: Sequence[GpuClaims]) -> Check:
    """Those that gave evidence are exactly those that every GPU is wired to."""
    given = frozenset().union(*(one.board.ids for one in switches))
    code, named = "gpu_switches", _listed(given)
    silent = [one.device for one in switches if not one.board.ids]
    if silent or not given or len(given) < len(switches):
        why = f"{', '.join(silent)} do not say who they are" if silent else f"only {named}"
        detail = f"switches that gave evidence: {len(switches)}: {why}"
        return Check(code=code, passed=False, detail=detail)
    for one in gpus:
        if one.board.ids != given:
            detail = f"{one.device} is wired to {_listed(one.board.ids)}; evidence is of {named}"
            return Check(code=code, passed=False, detail=detail)
    detail = f"every GPU is wired to exactly the {len(given)} switches that gave evidence: {named}"
    return Check(code=code, passed=True, detail=detail)


def _gpus_at_switches(gpus: Sequence[GpuClaims], switches: Sequence[GpuClaims]) -> Check:
    """Those that gave evidence are exactly those that every switch is wired to."""
    code = "gpu_switch_gpus"
    known = [one.id for one in gpus if one.id is not None]
    given, listed = frozenset(known), {one.board.gpus for one in switches}
    for one in switches:
        named = one.board.gpus
        if len(named) != len(gpus) or len(given) != len(known) or not given <= named:
            told = f"{one.device} is wired to the GPUs {_listed(named)}"
            detail = f"{told}; evidence is of {len(gpus)}: {_listed(given)}"
            return Check(code=code, passed=False, detail=detail)
    if len(listed) != 1:
        detail = "the switches are wired to different GPUs" if listed else "no switch tells"
        return Check(code=code, passed=False, detail=detail)
    if len(known) != len(gpus):
        unnamed = ", ".join(one.device for one in gpus if one.id is None)
        why = f"the certificates of {unnamed} do not state the id by which switches name them"
        return not_checked(f"{code}_not_checked", why)
    detail = f"every switch is wired to exactly the {len(gpus)} GPUs that gave evidence"
    return Check(code=code, passed=True, detail=detail)


def _locked(switches: Sequence[GpuClaims]) -> Check:
    open_ = [one.device for one in switches if one.board.lock != _LOCKED]
    detail = f"not locked: {', '.join(open_)}" if open_ else f"{len(switches)} switches are locked"
    passed = bool(switches) and not open_
    return Check(code="gpu_switch_lock", passed=passed, detail=detail)


def _listed(ids: frozenset[bytes]) -> str:
    return ", ".join(sorted(one.hex() for one in ids)) or "none"


def _reversed(ids: bytes) -> frozenset[bytes]:
    if len(ids) % _ID_BYTES:
        return frozenset()
    each = (ids[at : at + _ID_BYTES] for at in range(0, len(ids), _ID_BYTES))
    return frozenset(one[::-1] for one in each if any(one))


def _gpus_of_switch(value: bytes) -> frozenset[bytes]:
    if len(value) < _GPUS_LISTED * _ID_BYTES:
        return frozenset()
    each = (value[at : at + _ID_BYTES] for at in range(0, _GPUS_LISTED * _ID_BYTES, _ID_BYTES))
    return frozenset(one for one in each if any(one))


def _number(value: bytes | None) -> int | None:
    return int.from_bytes(value, "little") if value and len(value) <= 4 else None
