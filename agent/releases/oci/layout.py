"""Images in OCI layout directories, as buildah and skopeo write them.

Format: OCI image specification 1.1, image-layout.md, manifest.md, image-index.md, config.md.
Nothing is believed but digests: what a digest names is read only once its bytes have that digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.releases.fields import Field
from agent.releases.port import ReleaseError
from agent.strict_json import StrictJsonError, load_strict_json

_MARK = "oci-layout"
_REF_NAME = "org.opencontainers.image.ref.name"
_MAX_DOCUMENT = 4 << 20
_MAX_LAYERS = 512
_MAX_DEPTH = 3  # an index of indexes of manifests
_MAX_SIZE = 1 << 40
_PLATFORM = ("linux", "amd64")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's blob, and the digest of what it unpacks to."""

    path: Path
    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True, slots=True)
class OciImage:
    """An image whose documents have their digests. `config` is the config's very bytes."""

    digest: str
    config: bytes
    layers: tuple[Layer, ...]


def layouts_in(directory: Path) -> tuple[Path, ...]:
    """The directory itself and those right under it, as far as they are OCI layouts."""
    try:
        candidates = [directory, *sorted(directory.iterdir())]
    except OSError as error:
        raise ReleaseError(f"{directory} cannot be read") from error
    found = tuple(path for path in candidates if (path / _MARK).is_file())
    if not found:
        raise ReleaseError(f"{directory} holds no OCI layout: a directory with a file {_MARK}")
    return found


def names_in(layouts: tuple[Path, ...]) -> tuple[tuple[str, str], ...]:
    """(name, digest) of each image that the layouts list: named by its directory and its tag."""
    found = []
    for layout in layouts:
        index = Field(f"{layout}/index.json", "", _decoded(_index_bytes(layout), "index.json"))
        for manifest in index.member("manifests").items(_MAX_LAYERS):
            notes = manifest.optional("annotations")
            tag = notes.optional(_REF_NAME) if notes else None
            name = layout.resolve().name.lower()
            found.append((f"{name}:{tag.text()}" if tag else name, _digest(manifest)))
    return tuple(found)


def _index_bytes(layout: Path) -> bytes:
    try:
        data = (layout / "index.json").read_bytes()
    except OSError as error:
        raise ReleaseError(f"{layout}/index.json cannot be read") from error
    if len(data) > _MAX_DOCUMENT:
        raise ReleaseError(f"{layout}/index.json is longer than {_MAX_DOCUMENT} bytes")
    return data


def find_image(layouts: tuple[Path, ...], digest: str) -> OciImage | None:
    """The image of that digest (of a manifest, or of an index), or None if nobody has it."""
    for layout in layouts:
        if _blob(layout, digest).is_file():
            return _read_image(layout, digest, digest, _MAX_DEPTH)
    return None


def _read_image(layout: Path, asked: str, digest: str, depth: int) -> OciImage:
    document = _document(layout, digest)
    if document.optional("manifests"):
        if depth == 0:
            raise document.error("is an index within too many others")
        return _read_image(layout, asked, _of_platform(document), depth - 1)
    config_digest = _digest(document.member("config"))
    config = _bytes(layout, config_digest)
    described = Field(f"config {config_digest}", "", _decoded(config, config_digest))
    _check_platform(described)
    diff_ids = described.member("rootfs").member("diff_ids").items(_MAX_LAYERS)
    layers = document.member("layers").items(_MAX_LAYERS)
    if len(layers) != len(diff_ids):
        raise document.error(f"has {len(layers)} layers, its config tells of {len(diff_ids)}")
    return OciImage(
        digest=asked,
        config=config,
        layers=tuple(
            Layer(
                path=_blob(layout, _digest(layer)),
                digest=_digest(layer),
                size=layer.member("size").integer(0, _MAX_SIZE),
                diff_id=_sha256(diff_id),
            )
            for layer, diff_id in zip(layers, diff_ids, strict=True)
        ),
    )


def _of_platform(index: Field) -> str:
    """The manifest for the machine that the guest is."""
    for manifest in index.member("manifests").items(_MAX_LAYERS):
        platform = manifest.optional("platform")
        if platform is None:
            continue
        names = tuple(platform.member(name).text() for name in ("os", "architecture"))
        if names == _PLATFORM:
            return _digest(manifest)
    raise index.error(f"has no image for {'/'.join(_PLATFORM)}")


def _check_platform(config: Field) -> None:
    for name, wanted in zip(("os", "architecture"), _PLATFORM, strict=True):
        field = config.member(name)
        if field.text() != wanted:
            raise field.error(f"must be {wanted}: the guest is a {'/'.join(_PLATFORM)} machine")


def _document(layout: Path, digest: str) -> Field:
    return Field(f"manifest {digest}", "", _decoded(_bytes(layout, digest), digest))


def _decoded(data: bytes, digest: str) -> object:
    try:
        return load_strict_json(data)
    except StrictJsonError as error:
        raise ReleaseError(f"blob {digest} is not JSON: {error}") from error


def _bytes(layout: Path, digest: str) -> bytes:
    """A document's bytes, which have its digest."""
    path = _blob(layout, digest)
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_DOCUMENT + 1)
    except OSError as error:
        raise ReleaseError(f"{path} cannot be read") from error
    if len(data) > _MAX_DOCUMENT:
        raise ReleaseError(f"{path} is longer than {_MAX_DOCUMENT} bytes")
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise ReleaseError(f"{path}: its content has not that digest")
    return data


def checked_chunks(layer: Layer) -> Iterator[bytes]:
    """A layer's blob; after the last chunk it is an error if it was another than promised."""
    hashed, size = hashlib.sha256(), 0
    try:
        with layer.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                if size > layer.size:
                    break
                hashed.update(chunk)
                yield chunk
    except OSError as error:
        raise ReleaseError(f"{layer.path} cannot be read") from error
    if size != layer.size or f"sha256:{hashed.hexdigest()}" != layer.digest:
        raise ReleaseError(f"{layer.path}: its content has not that digest and size")


def _blob(layout: Path, digest: str) -> Path:
    algorithm, _, digits = digest.partition(":")
    return layout / "blobs" / algorithm / digits


def _digest(descriptor: Field) -> str:
    return _sha256(descriptor.member("digest"))


def _sha256(field: Field) -> str:
    text = field.text()
    algorithm, _, digits = text.partition(":")
    if algorithm != "sha256":
        raise field.error("must be a sha256 digest")
    Field(field.document, field.path, digits).hexadecimal(32)
    return text
