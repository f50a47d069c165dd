"""From nothing to a release by hand: what is written to begin with, and what is told meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from agent.cli import cli
from agent.releases.guest_rules.check import check_config
from tests.fakes.release_parts import CONFIG, make_image

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, 0.11.2."""
    directory = tmp_path_factory.mktemp("guest")
    make_image(directory, "v0.11.2")
    return directory


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in a checkout, and at a home of its own."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ENCLAVE_AGENT_GUEST_IMAGE", raising=False)


def release(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["release", *arguments], catch_exceptions=False)


def build(*more: str) -> Result:
    return release(
        *("build", "--config", "tinfoil-config.yml", "--repo", "own/hello", "--tag", "v1"),
        *("--out", "out", *more),
    )


def layout(directory: Path, tag: str | None = "1.0") -> None:
    """An OCI layout's index, as buildah writes it; its blobs are not looked at here."""
    directory.mkdir(parents=True)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    row: dict[str, object] = {"digest": DIGEST, "size": 1, "mediaType": "m"}
    if tag is not None:
        row["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (directory / "index.json").write_text(json.dumps({"manifests": [row]}))


def test_what_is_written_to_begin_with_lacks_only_the_image(guest: Path) -> None:
    result = release("init", "--guest", str(guest), "--secret", "API_KEY", "--variable", "COLOUR")
    assert result.exit_code == 0
    text = Path("tinfoil-config.yml").read_bytes()
    assert yaml.safe_load(text)["cvm-version"] == "0.11.2"
    assert [one.path for one in check_config(text)] == ["containers[0].image"]
    result = build("--image", str(guest))
    assert result.exit_code == 2
    assert "containers[0].image: has no digest behind its @" in result.output
    assert not Path("out").exists()
    assert release("init").exit_code == 3
    assert Path("tinfoil-config.yml").read_bytes() == text


def test_with_an_image_it_is_a_release(guest: Path) -> None:
    layout(Path("images/hello"))
    result = release("init", "--guest", str(guest), "--images", "images", "--port", "9000")
    assert result.exit_code == 0, result.output
    document = yaml.safe_load(Path("tinfoil-config.yml").read_text())
    [container] = document["containers"]
    assert (container["name"], container["image"]) == ("hello", f"localhost/hello:1.0@{DIGEST}")
    assert document["shim"]["upstream-port"] == 9000
    result = build("--image", str(guest))
    assert result.exit_code == 0, result.output
    assert "note: own/hello v1 has no launch digest" in result.output


def test_every_comment_of_it_is_a_field_that_guests_take() -> None:
    """What is commented out, taken in, is right too."""
    release("init", "--image", f"registry.example.org/web@{DIGEST}")
    lines = []
    for line in Path("tinfoil-config.yml").read_text().splitlines():
        bare = line.lstrip(" #")
        prose = bare[:1].isupper() or bare.startswith(("skopeo", "secrets'"))
        lines.append(line if prose else line.replace("# ", "", 1) if "#" in line[:5] else line)
    text = "\n".join(lines).encode()
    assert yaml.safe_load(text)["networks"] == {"outside": {"egress": "open"}}
    assert [str(one) for one in check_config(text) if one.sure] == []


def test_one_image_of_several_is_named(guest: Path) -> None:
    layout(Path("images/a"))
    layout(Path("images/b"), tag=None)
    result = release("init", "--images", "images")
    assert (result.exit_code, f"b@{DIGEST}" in result.output) == (2, True)
    assert release("init", "--images", "images", "--image", "b").exit_code == 0
    assert f"localhost/b@{DIGEST}" in Path("tinfoil-config.yml").read_text()


def test_all_that_is_wrong_is_told_at_once(guest: Path) -> None:
    text = CONFIG.replace(b"    secrets:", b"    privileged: true\n    secret:")
    Path("tinfoil-config.yml").write_bytes(text.replace(b"upstream-port", b"upstreem-port"))
    result = build("--image", str(guest))
    assert result.exit_code == 2
    assert "would refuse 4 places" in result.output
    for words in ("containers[0].secret: is no field", "did you mean secrets?", "privileged",
                  "did you mean upstream-port?", "shim.upstream-port: is missing"):  # fmt: skip
        assert words in result.output


def test_an_image_outside_a_checkout_is_found_or_its_places_are_named(
    guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("tinfoil-config.yml").write_bytes(CONFIG.replace(b"0.11.0", b"0.11.2"))
    result = build()
    assert result.exit_code == 2
    assert str(tmp_path / "cache/enclave-agent/guest") in result.output
    assert "scripts/build-guest" in result.output
    (tmp_path / "cache/enclave-agent").mkdir(parents=True)
    (tmp_path / "cache/enclave-agent/guest").symlink_to(guest)
    assert build().exit_code == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("ENCLAVE_AGENT_GUEST_IMAGE", str(guest))
    assert "there already" in build().output


def test_a_guest_that_pulls_nothing_wants_its_images(guest: Path, tmp_path: Path) -> None:
    for file in guest.iterdir():
        (tmp_path / file.name).symlink_to(file)
    description = json.loads((guest / "image.json").read_text())
    (tmp_path / "image.json").unlink()
    (tmp_path / "image.json").write_text(json.dumps(description | {"hello": DIGEST}))
    Path("tinfoil-config.yml").write_text(
        CONFIG.decode().replace("0.11.0", "0.11.2").replace("example.invalid", "registry.test")
    )
    text = Path("tinfoil-config.yml").read_text().replace("0" * 64, "a" * 64)
    Path("tinfoil-config.yml").write_text(text)
    result = build("--image", str(tmp_path))
    assert result.exit_code == 2
    assert "containers[0].image: the reference guest pulls no image" in result.output
    assert "buildah push" in result.output
