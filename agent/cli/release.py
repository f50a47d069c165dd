"""`enclave-agent release build`: a release from a tinfoil-config.yml and an image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

DONE, FAILED, BAD_INPUT, REFUSED = 0, 1, 2, 3


@click.group()
def release() -> None:
    """Make releases."""


@release.command()
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
    default=Path(".cache/guest"),
    show_default=True,
    help="An image.json, or the directory that holds it, with the image's files beside it.",
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
    image_path: Path,
    repo: str,
    tag: str,
    out: Path,
    debug: bool,
    snp_measurement: str | None,
    firmware: Path | None,
    images: Path | None,
) -> None:
    """Make a release from a config and an image.

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
        base = read_image(image_path / "image.json" if image_path.is_dir() else image_path)
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
        _fail(describe(error), REFUSED)
    except ReleaseError as error:
        _fail(describe(error), BAD_INPUT)
    except (AgentError, OSError) as error:
        _fail(describe(error), FAILED)
    word = "made" if built.fresh else "there already"
    click.echo(f"{repo} {tag}: {word}: {built.manifest} (sha256 {built.release.digest})")


def _fail(text: str, code: int) -> NoReturn:
    click.echo(f"enclave-agent: {text}", err=True)
    sys.exit(code)
