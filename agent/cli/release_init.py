"""`enclave-agent release init`: a tinfoil-config.yml to begin with, which says what it means."""

from __future__ import annotations

from pathlib import Path

import click

from agent.cli.exits import Exit, Failure
from agent.cli.release_image import VARIABLE, find_image

_CVM_VERSION = "0.12.0"  # where no image says another
_NO_IMAGE = "registry.example.org/you/NAME:1.0@sha256:PUT-ITS-DIGEST-HERE"

_TEXT = """\
# The workload of one enclave, as its guest reads it. It is measured, byte for byte, and public:
# secrets' values never stand here.
cvm-version: {version}   # of the guest's image
cpus: {cpus}
memory: {memory}   # MiB, of the whole guest
# gpus: 1   # 1 or 8; a container that uses them says `runtime: nvidia` and `gpus: all`

containers:
  - name: {name}
    # Pinned by its digest, or the guest refuses it. Of an image in a registry:
    #   skopeo inspect --format '{{{{.Name}}}}@{{{{.Digest}}}}' docker://REGISTRY/NAME:TAG
    image: "{image}"
    # command: ["serve", "--port", "{port}"]   # a list; instead of the image's own
    restart: always
{env}{secrets}    # The boot waits until this passes, for start_period and retries times interval:
    # healthcheck:
    #   test: ["CMD", "/program", "check"]   # a program of the image
    #   interval: 10s
    #   start_period: 1m
    # networks: [outside]   # without one it reaches nothing but what is in its guest

# networks:
#   outside:
#     egress: open   # closed, allowlist (with allow: [api.example.org]) or open

shim:   # stands before the workload on 443, where TLS ends
  upstream-port: {port}   # where {name} listens, on all addresses
  # paths: [/health, /api/*]   # what is let through; without a list everything
  tls-mode: self-signed   # or cert-proxy or acme, for a certificate that browsers take

# cvm-network:
#   inbound-ports: [{port}]   # ports beside 443; the host publishes them with --publish
"""


@click.command()
@click.argument(
    "file", type=click.Path(path_type=Path, dir_okay=False), default=Path("tinfoil-config.yml")
)
@click.option("--name", default=None, metavar="NAME", help="The container's. [web]")
@click.option("--image", metavar="NAME@sha256:DIGEST", help="Its image.")
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Take the image from a directory of OCI layouts that holds one.",
)
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True)
@click.option("--variable", "variables", multiple=True, metavar="K", help="Given at deploy.")
@click.option("--secret", "secrets", multiple=True, metavar="K", help="Given at deploy.")
@click.option("--cpus", type=click.IntRange(1), default=1, show_default=True)
@click.option("--memory", type=click.IntRange(128), default=512, show_default=True, help="MiB.")
@click.option(
    "--guest", type=click.Path(path_type=Path, exists=True), envvar=VARIABLE, hidden=True
)
def init(  # noqa: PLR0917 - click passes them by name
    file: Path,
    name: str | None,
    image: str | None,
    images: Path | None,
    port: int,
    variables: tuple[str, ...],
    secrets: tuple[str, ...],
    cpus: int,
    memory: int,
    guest: Path | None,
) -> None:
    """Write a tinfoil-config.yml to begin with.

    Exit codes: 0 written; 2 usage; 3 the file is there already, and is left as it is.
    """
    from agent.cli.screen import say

    if images is not None:
        found_name, image = _from_layouts(images, image)
        name = name or found_name
    name = name or "web"
    text = _TEXT.format(
        version=_version(guest),
        cpus=cpus,
        memory=memory,
        name=name,
        image=image or _NO_IMAGE.replace("NAME", name),
        port=port,
        env=_listed("env", variables),
        secrets=_listed("secrets", secrets),
    )
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise Failure(Exit.REFUSED, f"{file} is there already: it is left as it is") from None
    except OSError as error:
        raise Failure(Exit.FAILED, f"{file}: {error.strerror}") from None
    say(f"{file}: written")
    if image is None:
        say("next: put the image and its digest into it (containers[0].image)")
    say(f"then: enclave-agent release build --config {file} --repo {name} --tag v1.0.0 --out DIR")


def _version(guest: Path | None) -> str:
    """Of the image that a release would be made with."""
    from agent.releases.build import read_image
    from agent.releases.layout import VERSION
    from agent.releases.port import ReleaseError

    path = find_image(guest)
    if path is None:
        return _CVM_VERSION
    try:
        version = read_image(path).version
    except ReleaseError:
        return _CVM_VERSION
    return version.removeprefix("v") if VERSION.fullmatch(version) else _CVM_VERSION


def _from_layouts(directory: Path, wanted: str | None) -> tuple[str, str]:
    """(container's name, image) of the one image there, or of that one which is named."""
    from agent.errors import describe
    from agent.releases.oci.layout import layouts_in, names_in
    from agent.releases.port import ReleaseError

    try:
        found = names_in(layouts_in(directory))
    except ReleaseError as error:
        raise Failure(Exit.USAGE, describe(error)) from None
    chosen = [one for one in found if wanted is None or wanted in (one[0], one[0].split(":")[0])]
    if len(chosen) != 1:
        listed = [f"{name}@{digest}" for name, digest in found]
        raise Failure(Exit.USAGE, f"{directory}: name one image by --image", listed)
    [(name, digest)] = chosen
    return name.partition(":")[0], f"localhost/{name}@{digest}"


def _listed(key: str, names: tuple[str, ...]) -> str:
    """A list of names, or how one would look."""
    if names:
        return f"    {key}: [{', '.join(names)}]\n"
    example = {"env": "LOG_LEVEL: info", "secrets": "API_KEY"}[key]
    what = "fixed here, or a name alone: given at deploy" if key == "env" else "given at deploy"
    return f"    # {key}: [{example}]   # {what}\n"
