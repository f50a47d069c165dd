"""A launch in one measured file (IGVM): which files, and what a report of such a launch says."""

from __future__ import annotations

import msgspec


class SnpLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of a SEV-SNP report; digests are hex. `host_data`: the config's SHA-256."""

    measurement: str
    policy: int
    host_data: str
    guest_svn: int
    id_key_digest: str
    author_key_digest: str = "0" * 96


class TdxLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """Registers of a TDX report, in hex; RTMR0 to RTMR3 are zero, since nothing extends them.

    `mrconfigid`: the config's SHA-256, followed by 16 zero bytes.
    """

    mrtd: str
    mrconfigid: str


class Igvm(msgspec.Struct, frozen=True, kw_only=True):
    """The files' SHA-256 in hex, and what their launches come to; None: there is none of it."""

    snp_sha256: str | None = None
    tdx_sha256: str | None = None
    snp: SnpLaunch | None = None
    tdx: TdxLaunch | None = None
