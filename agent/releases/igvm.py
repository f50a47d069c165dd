"""The launch in one measured file (IGVM), as a manifest tells it. Pure.

`igvm` names the files by their SHA-256 (`snp`, `tdx`). What a report must say stands in a `launch`
object for each platform: as `igvm.snp_launch` and `igvm.tdx_launch`, or as `launch.snp` and
`launch.tdx`, of the manifest or of `igvm`. All of it may stand in `hashes`, where the manifest of
the image is repeated. What is there is checked to the letter, and held against the config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.model.igvm import Igvm, SnpLaunch, TdxLaunch
from agent.releases.fields import Field
from agent.releases.naming import CONFIG
from agent.releases.port import LaunchFormatError

FORMAT_VERSION = 1
SNP_POLICY = 0x30133
MAX_CPUS = 255
MAX_MEMORY_MIB = 2046 << 10
NO_KEY = "0" * 96
_ZERO_REGISTER = "0" * 96
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_REGISTERS = ("rtmr0", "rtmr1", "rtmr2", "rtmr3")


def is_igvm(root: Field) -> bool:
    """Whether this manifest is of a launch in one file."""
    return bool(_places(root))


def read_igvm(root: Field, config_sha256: str) -> Igvm | None:
    """The launch, or None for a manifest of another format.

    Raises LaunchFormatError for a version of the format that is not known, ReleaseFieldError for
    what is wrong in one that is.
    """
    places = _places(root)
    if not places:
        return None
    for place in places:
        version = place.optional("format_version")
        if version is not None and version.value != FORMAT_VERSION:
            raise LaunchFormatError(
                f"{version.document}: {version.path}: this agent knows version {FORMAT_VERSION} "
                "of the IGVM launch format only"
            )
    snp, tdx = _launch(root, places, "snp"), _launch(root, places, "tdx")
    return Igvm(
        snp_sha256=_file(places, "snp"),
        tdx_sha256=_file(places, "tdx"),
        snp=_snp(snp, config_sha256) if snp else None,
        tdx=_tdx(tdx, config_sha256) if tdx else None,
    )


def check_size(cpus: int, memory_mib: int) -> None:
    """Raise ReleaseFieldError for a machine that the format has no room for."""
    config = Field(CONFIG, "", {"cpus": cpus, "memory": memory_mib})
    config.member("cpus").integer(1, MAX_CPUS)
    config.member("memory").integer(1, MAX_MEMORY_MIB)


def _places(root: Field) -> list[Field]:
    """Every `igvm` object that names a file; others are fields of somebody else."""
    hashes = root.optional("hashes")
    found = (one.optional("igvm") for one in (root, hashes) if one is not None)
    return [one for one in found if one is not None and _tells(one.value)]


def _tells(value: object) -> bool:
    """Whether it names a file. One with mere launches is beside what is booted otherwise."""
    if not isinstance(value, dict):
        return False
    files = (value.get(platform) for platform in ("snp", "tdx"))
    return any(isinstance(one, str) and _SHA256.fullmatch(one) for one in files)


def _file(places: list[Field], platform: str) -> str | None:
    found = (place.optional(platform) for place in places)
    return next((field.hexadecimal(32) for field in found if field is not None), None)


def _launch(root: Field, places: list[Field], platform: str) -> Field | None:
    return next(_launches(root, places, platform), None)


def _launches(root: Field, places: list[Field], platform: str) -> Iterator[Field]:
    for place in places:
        own = place.optional(f"{platform}_launch")
        if own is not None:
            yield own
    mark = {"snp": "measurement", "tdx": "mrtd"}[platform]
    for place in (*places, root):
        both = place.optional("launch")
        if both is None:
            continue
        own = both.optional(platform)
        if own is not None:
            yield own
        elif both.optional(mark) is not None:
            yield both


def _snp(field: Field, config_sha256: str) -> SnpLaunch:
    policy = _number(field.member("policy"))
    if policy != SNP_POLICY:
        raise field.member("policy").error(f"must be {SNP_POLICY:#x}, the only policy of IGVM")
    svn, key = field.optional("guest_svn"), field.optional("id_key_digest")
    author = field.optional("author_key_digest")
    stated = field.optional("host_data")
    if stated is not None and stated.hexadecimal(32) != config_sha256:
        raise stated.error("is not the SHA-256 of config")
    return SnpLaunch(
        measurement=field.member("measurement").hexadecimal(48),
        policy=policy,
        host_data=config_sha256,
        guest_svn=svn.integer(0, 2**32 - 1) if svn else 0,
        id_key_digest=key.hexadecimal(48) if key else NO_KEY,
        author_key_digest=author.hexadecimal(48) if author else NO_KEY,
    )


def _tdx(field: Field, config_sha256: str) -> TdxLaunch:
    wanted = config_sha256 + "0" * 32
    stated = field.optional("mrconfigid")
    if stated is not None and stated.hexadecimal(48) != wanted:
        raise stated.error("is not the SHA-256 of config followed by 16 zero bytes")
    for name in _REGISTERS:
        register = field.optional(name)
        if register is not None and register.hexadecimal(48) != _ZERO_REGISTER:
            raise register.error("must be zero: nothing extends it")
    return TdxLaunch(mrtd=field.member("mrtd").hexadecimal(48), mrconfigid=wanted)


def _number(field: Field) -> int:
    """A number, or hexadecimal text such as 0x30133."""
    if isinstance(field.value, str):
        try:
            return int(field.value, 16) if field.value.startswith("0x") else int(field.value)
        except ValueError:
            raise field.error("must be a number, or text such as 0x30133") from None
    return field.integer(0, 2**64 - 1)
