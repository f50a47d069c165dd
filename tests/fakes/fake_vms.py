"""Puts the fake QEMU into a place, and makes releases of a tiny image for it."""

from __future__ import annotations

import datetime as dt
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from simulator import fake_qemu
from tests.fakes.guest_releases import config_of, make_releases
from tests.fakes.release_parts import make_image

TIMES = {
    "update": {"dwell_s": 0.05, "soak_s": 0.05, "drain_s": 1, "stop_grace_s": 1},
    "probes": {
        "interval_s": 0.1,
        "timeout_s": 2,
        "success_threshold": 1,
        "failure_threshold": 1,
        # One failure is a verdict here: clients' ends would be told before the end of the VM is.
        "outside": "never",
    },
}


def settings(program: Path, **sections: Any) -> dict[str, Any]:
    """A configuration for VMs that are none, and are up at once."""
    return {"qemu": {"binary": str(program)}, **TIMES, **sections}


class Guests:
    """What guests are ordered to do (see `fake_qemu`), by tag: at once, and until released."""

    def __init__(self, program: Path) -> None:
        self._orders = program.with_name("orders")
        self._orders.mkdir(exist_ok=True)

    def order(self, tag: str, word: str) -> None:
        new = self._orders / f".{tag}"
        new.write_text(word)
        new.replace(self._orders / tag)

    def release(self, tag: str) -> None:
        (self._orders / tag).unlink(missing_ok=True)


def install(directory: Path) -> Path:
    """The executable, with a key of its guests' beside it."""
    # -I -S: the standard library alone, whatever stands in the environment
    interpreter = os.path.realpath(sys.executable)
    program = directory / "fake-qemu"
    source = Path(fake_qemu.__file__).read_text()
    program.write_text(f"#!{interpreter} -IS\n{source}")
    program.chmod(0o755)
    (directory / "guest.pem").write_bytes(_key_and_certificate())
    return program


def _key_and_certificate() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fake guest")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + certificate.public_bytes(Encoding.PEM)


def fake_releases(directory: Path, configs: Mapping[str, bytes]) -> Path:
    """A release source with these tags, of an image that only the fake QEMU boots."""
    make_image(directory / "image", "v0.12.0")
    source = directory / "source"
    make_releases(source, configs, directory / "image" / "image.json")
    return source


def releases_of_own_images(directory: Path, tags: Sequence[str]) -> Path:
    """A release source in which each tag has artifacts of its own: an update must fetch them."""
    source = directory / "source"
    for number, tag in enumerate(tags):
        version = f"0.12.{number}"
        make_image(directory / tag, f"v{version}", seed=tag.encode())
        config = config_of().replace(b"0.12.0", version.encode())
        make_releases(source, {tag: config}, directory / tag / "image.json")
    return source
