"""`enclave-agent release build`: a release from a tinfoil-config.yml and an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from agent.cli.exits import Exit, Failure
from agent.cli.release_image import VARIABLE, need_image

if TYPE_CHECKING:
    from agent.releases.build import Built, Image


@click.command()
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    required=True,
    help="The workload's tinfoil-config.yml; its bytes are taken as they are.",
)
@click.option(
    "--image",
    "image_path",
    type=click.Path(path_type=Path, exists=True),
    envvar=VARIABLE,
    help="An image.json, or the directory that holds it, with the image's files beside it. "
    "[.cache/guest, ~/.cache/enclave-agent/guest, /usr/share/enclave-agent/guest, …]",
)
@click.option("--repo", required=True, help="NAME or OWNER/NAME.")
@click.option("--tag", required=True, help="The release's tag. A tag never changes.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The source directory: it gets REPO/TAG/tinfoil-deployment.json and images/.",
)
@click.option("--debug", is_flag=True, help="Mark it as a debug release (tinfoil-debug=on).")
@click.option("--snp-measurement", metavar="HEX", help="The expected SEV-SNP launch digest.")
@click.option(
    "--firmware",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The OVMF that it boots with: named in it, and the launch digest computed.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="A directory of OCI layouts: the config's images run from a root disk of their own.",
)
def build(  # noqa: PLR0917 - click passes them by name
    config_path: Path,
    image_path: Path | None,
    repo: str,
    tag: str,
    out: Path,
    debug: bool,
    snp_measurement: str | None,
    firmware: Path | None,
    images: Path | None,
) -> None:
    """Make a release from a config and an image.

    The config is checked strictly: what its guest would refuse is refused here, all of it at once,
    by its place.

    With --images (of the reference guest only) every container's image that is not played must be
    in one of its OCI layouts (as `buildah push NAME oci:DIR/NAME` or skopeo writes them), with
    that very digest. Images whose registry ends in .example or .invalid are played.

    Exit codes: 0 made, or there already with the same content; 1 failed; 2 wrong config or image;
    3 the tag or the image version is there with another content.
    """
    from agent.errors import AgentError, describe
    from agent.releases.build import TagTakenError, build_release, read_image
    from agent.releases.port import ReleaseError
    from agent.releases.with_images import image_with

    try:
        config = config_path.read_bytes()
        _check(config, config_path)
        base = read_image(need_image(image_path))
        _check_images(base, config, images)
        with image_with(base, config, images) as image:
            built = build_release(
                config=config,
                image=image,
                repo=repo,
                tag=tag,
                out=out,
                debug=debug,
                snp_measurement=snp_measurement,
                firmware=firmware,
            )
    except TagTakenError as error:
        raise Failure(Exit.REFUSED, describe(error)) from None
    except ReleaseError as error:
        raise Failure(Exit.USAGE, describe(error)) from None
    except (AgentError, OSError) as error:
        raise Failure(Exit.FAILED, describe(error)) from None
    _tell(repo, tag, built)


def _check(config: bytes, path: Path) -> None:
    """Refuse what the guest refuses; tell what is odd."""
    from agent.cli.screen import say
    from agent.releases.guest_rules.check import check_config

    findings = check_config(config)
    wrong = [str(one) for one in findings if one.sure]
    if wrong:
        places = "1 place" if len(wrong) == 1 else f"{len(wrong)} places"
        raise Failure(Exit.USAGE, f"{path}: its guest would refuse {places}", wrong)
    for one in findings:
        say(f"note: {path}: {one}", err=True)


def _check_images(image: Image, config: bytes, images: Path | None) -> None:
    """A guest that pulls nothing needs its images with it, or its containers never run."""
    from agent.releases.oci.references import references

    if images is not None or image.pulls:
        return
    missing = [one for one in references(config) if not one.played]
    if missing:
        raise Failure(
            Exit.USAGE,
            f"{missing[0].field.path}: the reference guest pulls no image: give --images",
            [
                "DIR holds an OCI layout of each: buildah push NAME oci:DIR/NAME",
                "or: skopeo copy docker://NAME@DIGEST oci:DIR/NAME",
            ],
        )


def _tell(repo: str, tag: str, built: Built) -> None:
    from agent.cli.screen import say
    from agent.releases.described import what_it_cannot

    word = "made" if built.fresh else "there already"
    say(f"{repo} {tag}: {word}: {built.manifest} (sha256 {built.release.digest})")
    for sentence in what_it_cannot(built.release):
        say(f"note: {repo} {tag} {sentence}", err=True)
