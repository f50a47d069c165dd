"""`enclave-agent release pull`: a public release, mirrored into a directory of this host."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.release_source import Opening, named, source_options, with_sources


@click.command()
@click.argument("release", metavar="OWNER/REPO@TAG")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The source directory: it gets REPO/TAG/tinfoil-deployment.json and images/.",
)
@click.option(
    "--image-source",
    "image_sources",
    multiple=True,
    metavar="DIR|URL|github",
    help="Where the image's files are, if not beside the release; repeatable.",
)
@source_options
def pull(  # noqa: PLR0917 - click passes them by name
    release: str,
    out: Path,
    image_sources: tuple[str, ...],
    source: str | None,
    token_file: Path | None,
    ca_file: Path | None,
) -> None:
    """Bring a release here, whole and verified. [from github]

    What it names is compared to the last byte before it has its name, and the manifest comes last.
    Again it asks only whether something changed, and an interrupted one goes on where it stopped.
    Its signature comes with it; the agent checks it where it is configured to.

    Exit codes: 0 here; 1 failed; 2 the release is wrong; 3 the tag is here with another content; 4
    no such release.
    """
    from agent.cli.screen import say
    from agent.releases.described import what_it_cannot
    from agent.releases.mirror import Mirror, Pulled

    repo, tag = named(release)

    async def work(opening: Opening) -> Pulled:
        mirror = Mirror(
            out,
            opening.open(source or "github"),
            [opening.open(text) for text in image_sources],
            opening.executor,
        )
        return await mirror.pull(repo, tag, lambda text: say(f"fetching {text}", err=True))

    pulled = with_sources(work, token_file, ca_file)
    word = "pulled" if pulled.fresh or pulled.brought else "here already"
    signed = ", with its signature" if pulled.signed else ", not signed"
    say(f"{repo} {tag}: {word}: {pulled.manifest} (sha256 {pulled.release.digest}{signed})")
    for sentence in (*what_it_cannot(pulled.release), *pulled.release.guest_refusals):
        say(f"note: {repo} {tag}: {sentence}", err=True)
