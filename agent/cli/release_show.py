"""`enclave-agent release list` and `show`: what a source has, and what one release is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent.cli.exits import Exit, Failure
from agent.cli.options import Output, output
from agent.cli.release_source import Opening, named, source_options, with_sources

if TYPE_CHECKING:
    from rich.console import RenderableType

    from agent.model.release import Release
    from agent.releases.source import Source


@click.command(name="list")
@click.argument("repo", required=False)
@source_options
@output
def list_(
    repo: str | None,
    source: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    output: Output,
) -> None:
    """Show the releases that a source has.

    Of a directory all of them; of GitHub those of REPO, which is needed there. An https URL has no
    listing.
    """

    async def work(opening: Opening) -> list[tuple[str, str]]:
        return await _listed(opening.open(source), repo)

    rows = with_sources(work, token_file, ca_file)
    from agent.cli.screen import show as show_page
    from agent.cli.screen import show_json, show_json_lines, table
    from agent.cli.text import safe

    members = [{"repo": one, "tag": tag} for one, tag in rows]
    if output.by_line:
        show_json_lines(members)
    elif output.for_programs:
        show_json({"releases": members})
    else:
        page = table("REPO", "TAG")
        for one, tag in rows:
            page.add_row(safe(one), safe(tag))
        show_page(page, output)


async def _listed(source: Source, repo: str | None) -> list[tuple[str, str]]:
    from agent.releases.github import GithubSource
    from agent.releases.listing import releases_in
    from agent.releases.source import DirectorySource

    if isinstance(source, GithubSource):
        if repo is None:
            raise Failure(Exit.USAGE, "of GitHub name the repository: release list OWNER/NAME")
        return [(repo, tag) for tag in await source.tags(repo)]
    if isinstance(source, DirectorySource):
        return [one for one in releases_in(source.root) if repo in (None, one[0])]
    raise Failure(
        Exit.USAGE, "an https source has no listing: release show REPO@TAG asks for one by name"
    )


@click.command()
@click.argument("release", metavar="REPO@TAG")
@source_options
@output
def show(
    release: str,
    source: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    output: Output,
) -> None:
    """Show what a release is: its guest, what it runs, what it needs, what it cannot.

    Its signature is not checked here; the agent does that where it is configured to.
    """
    repo, tag = named(release)

    async def work(opening: Opening) -> Release:
        from agent.releases.manifest import read_release

        return read_release(repo, tag, await opening.open(source).manifest(repo, tag))

    found = with_sources(work, token_file, ca_file)
    from agent.cli.screen import show as show_page
    from agent.cli.screen import show_json

    if output.for_programs:
        show_json(_members(found), one_line=output.by_line)
    else:
        show_page(_page(found), output)


def _members(release: Release) -> dict[str, Any]:
    from agent.releases.described import describe_config, what_it_cannot

    described = describe_config(release.config, release.cvm_version)
    return {
        "repo": release.repo,
        "tag": release.tag,
        "digest": release.digest,
        "guest": described.guest,
        "debug": release.debug,
        "cpus": release.demand.vcpus,
        "memory_mib": release.demand.memory_mib,
        "gpus": release.demand.gpus,
        "containers": described.containers,
        "upstream_port": described.upstream_port,
        "inbound_ports": release.inbound_ports,
        "variables": release.env_names,
        "secrets": release.secret_names,
        "models": release.models,
        "volumes": release.volumes,
        "firmware_sha256": release.firmware_sha256,
        "snp_measurement": release.snp_measurement,
        "tdx_measurement": release.tdx_measurement,
        "cannot": what_it_cannot(release),
        "guest_refusals": release.guest_refusals,
    }


def _page(release: Release) -> RenderableType:
    from rich.text import Text

    from agent.cli.screen import pairs
    from agent.cli.text import safe
    from agent.releases.described import describe_config, what_it_cannot

    described = describe_config(release.config, release.cvm_version)
    page = pairs()
    page.add_row("release", safe(f"{release.repo} {release.tag}"))
    page.add_row("sha256", release.digest, whole=True)
    page.add_row("guest", safe(described.guest))
    demand = release.demand
    page.add_row("machine", f"{demand.vcpus} vCPUs, {demand.memory_mib} MiB, {demand.gpus} GPUs")
    for n, one in enumerate(described.containers):
        played = "  (played by the reference guest: nothing of it runs)" if one.played else ""
        page.add_row("" if n else "runs", safe(f"{one.name}  {one.image}{played}"), whole=True)
    if described.upstream_port is not None:
        page.add_row("answers", f"443, by port {described.upstream_port} of its container")
    for what, names in (
        ("opens", [f"port {port}" for port in release.inbound_ports]),
        ("variables", release.env_names),
        ("secrets", release.secret_names),
        ("models", release.models),
        ("volumes", release.volumes),
    ):
        if names:
            page.add_row(what, safe(", ".join(names)))
    if release.firmware_sha256:
        page.add_row("firmware", f"sha256 {release.firmware_sha256}", whole=True)
    if release.snp_measurement:
        page.add_row("SEV-SNP", release.snp_measurement, whole=True)
    for register, value in (release.tdx_measurement or {}).items():
        page.add_row(f"TDX {register}", value, whole=True)
    for sentence in (*what_it_cannot(release), *release.guest_refusals):
        page.add_row("note", Text(safe(sentence), style="yellow"))
    return page
