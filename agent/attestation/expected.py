"""What evidence is compared with: what the release and this very question to the guest fix."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agent.model.gpu import CcMode
from agent.model.igvm import Igvm
from agent.model.release import Release
from agent.model.shape import Shape, shape_of

NO_HOST_DATA = bytes(32)
ZERO_REGISTER = bytes(48)


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """`report_data` None: nothing was asked that the evidence could answer to (documents v2).

    Host data is zero with firmware of the OVMF kind; clients require it. A measurement that is
    None is not known, and then no evidence is good enough; `rtmr1` and `rtmr2` are those of TDX.
    A launch in one measured file fixes more than that: what is None of it is not compared, and
    `mrtd` with `rtmr0` None is for the operator's endorsed platforms to say, of which those for
    another `shape` do not count. `gpu_mode`: of its GPUs; None: that is for them to say.
    """

    snp_measurement: bytes | None = None
    rtmr1: bytes | None = None
    rtmr2: bytes | None = None
    host_data: bytes = NO_HOST_DATA
    snp_policy: int | None = None
    guest_svn: int | None = None
    id_key_digest: bytes | None = None
    author_key_digest: bytes | None = None
    mrtd: bytes | None = None
    rtmr0: bytes | None = None
    mrconfigid: bytes = ZERO_REGISTER
    report_data: bytes | None = None
    gpus: int = 0
    gpu_mode: CcMode | None = None
    shape: Shape | None = None


ExpectedSource = Callable[[Release], Expected]


def expected_of(release: Release) -> Expected:
    """From the manifest, whose measurements are hex and were checked when it was read."""
    if release.igvm is not None:
        return _of_one_file(release.igvm, release.demand.gpus)
    snp, tdx = release.snp_measurement, release.tdx_measurement
    return Expected(
        snp_measurement=bytes.fromhex(snp) if snp else None,
        rtmr1=bytes.fromhex(tdx["rtmr1"]) if tdx else None,
        rtmr2=bytes.fromhex(tdx["rtmr2"]) if tdx else None,
        gpus=release.demand.gpus,
        shape=shape_of(release),
    )


def _of_one_file(igvm: Igvm, gpus: int) -> Expected:
    """Of a launch in one measured file. Nothing extends a register of TDX: all four are zero."""
    snp, tdx = igvm.snp, igvm.tdx
    expected = Expected(gpus=gpus)
    if snp is not None:
        expected = msgspec.structs.replace(
            expected,
            snp_measurement=bytes.fromhex(snp.measurement),
            host_data=bytes.fromhex(snp.host_data),
            snp_policy=snp.policy,
            guest_svn=snp.guest_svn,
            id_key_digest=bytes.fromhex(snp.id_key_digest),
            author_key_digest=bytes.fromhex(snp.author_key_digest),
        )
    if tdx is not None:
        expected = msgspec.structs.replace(
            expected,
            mrtd=bytes.fromhex(tdx.mrtd),
            mrconfigid=bytes.fromhex(tdx.mrconfigid),
            rtmr0=ZERO_REGISTER,
            rtmr1=ZERO_REGISTER,
            rtmr2=ZERO_REGISTER,
        )
    return expected
