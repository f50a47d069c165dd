"""A release in words: which guest it boots, what that runs, what it cannot. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from agent.model.release import PUBLIC_IMAGE, Release
from agent.releases.oci.references import is_played
from agent.releases.workload import MAX_CONFIG_BYTES
from agent.strict_yaml import StrictYamlError, load_strict_yaml


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """One container as the config has it. `played`: its registry is one that nobody can have, so
    that the reference guest only acts it out.
    """

    name: str
    image: str
    played: bool = False


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What a person asks of a release. `guest`: whose image, and which version of it."""

    guest: str
    containers: tuple[Declared, ...]
    upstream_port: int | None


def describe_config(config: bytes, cvm_version: str) -> Described:
    """Of a config that was read before; what is odd in it is left out."""
    try:
        root = load_strict_yaml(config, max_bytes=MAX_CONFIG_BYTES)
    except StrictYamlError:
        root = None
    members: Mapping[Any, Any] = root if isinstance(root, dict) else {}
    listed = members.get("containers")
    shim = members.get("shim")
    port = shim.get("upstream-port") if isinstance(shim, dict) else None
    return Described(
        guest=f"{_source(members.get('cvm-source'))} {cvm_version}",
        containers=tuple(
            Declared(
                name=str(one.get("name", "?")),
                image=str(one.get("image", "?")),
                played=is_played(str(one.get("image", ""))),
            )
            for one in (listed if isinstance(listed, list) else ())
            if isinstance(one, dict)
        ),
        upstream_port=port if isinstance(port, int) else None,
    )


def _source(said: object) -> str:
    repo = said.get("repo") if isinstance(said, dict) else said
    return str(repo) if repo else PUBLIC_IMAGE


def what_it_cannot(release: Release) -> tuple[str, ...]:
    """Sentences about where this release will not do, each with what to do about it."""
    told = []
    if release.debug:
        told.append("is a debug release: it gives no evidence, and its console is open")
    if release.dummy_attestation:
        told.append(
            "gives a dummy in place of evidence (shim.dummy-attestation): hosts that demand "
            "evidence refuse it"
        )
    measured = release.igvm is not None or release.snp_measurement or release.tdx_measurement
    if not measured:
        told.append(
            "has no launch digest: hosts that demand evidence (tee: sev-snp, tdx, simulated) "
            "refuse it; make it with --firmware"
        )
    elif release.igvm is None and release.snp_measurement and not release.tdx_measurement:
        told.append("has no measurement for TDX: it is for hosts with SEV-SNP")
    if release.igvm is not None:
        told.append("is launched in one measured file (IGVM), which no host of this agent can yet")
    return tuple(told)
