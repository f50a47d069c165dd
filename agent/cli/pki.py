"""`enclave-agent pki`: a CA and certificates for a small fleet or a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from agent.cli.exits import Exit, Failure

_DIRECTORY = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("pki"),
    show_default=True,
    help="Where the authority lies. Its key is as dear as the whole fleet.",
)
_DAYS = click.FloatRange(min=0, min_open=True, max=36500)


@click.group()
def pki() -> None:
    """Make certificates for a small fleet or a test."""


@pki.command()
@_DIRECTORY
@click.option("--trust-domain", required=True, help="The fleet's name, such as fleet.example.")
@click.option("--days", type=_DAYS, default=3650, show_default=True)
def init(directory: Path, trust_domain: str, days: float) -> None:
    """Make an authority: a key, a certificate, an empty list of revoked ones."""
    from agent.pki.authority import Authority

    with _failing():
        Authority.create(directory, trust_domain, days=days)
    click.echo(f"{directory}: ca.pem and crl.pem go to every host, ca.key to none")


@pki.command()
@_DIRECTORY
@click.option("--coordinator", "role", flag_value="coordinator", help="May do everything.")
@click.option("--observer", "role", flag_value="observer", help="May read.")
@click.option("--host", "host_id", metavar="ID", help="Is the agent of that host.")
@click.option("--days", type=_DAYS, default=90, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where NAME.pem and NAME.key go. [the authority's directory]",
)
def issue(
    directory: Path, role: str | None, host_id: str | None, days: float, out: Path | None
) -> None:
    """Make a key and a certificate for one member of the fleet."""
    from agent.host.files import make_private_directory, write_atomic
    from agent.pki.authority import Authority, new_key, pem_of
    from agent.pki.names import coordinator_uri, host_uri, observer_uri

    if (role is None) == (host_id is None):
        raise Failure(Exit.USAGE, "say one of --coordinator, --observer and --host ID")
    with _failing():
        authority = Authority.open(directory)
        domain = authority.trust_domain
        if host_id is not None:
            _check_host_id(host_id)
            uri = host_uri(domain, host_id)
        else:
            uri = (coordinator_uri if role == "coordinator" else observer_uri)(domain)
        key, place = new_key(), out or directory
        if not place.is_dir():
            make_private_directory(place)
        certificate = authority.issue(key.public_key(), uri, days=days)
        stem = host_id or str(role)
        write_atomic(place / f"{stem}.key", pem_of(key))
        write_atomic(place / f"{stem}.pem", _pem(certificate), mode=0o644)
    click.echo(f"{place / stem}.pem and .key: {uri}, for {days:g} days")


@pki.command()
@_DIRECTORY
@click.argument("certificate", type=click.Path(path_type=Path, dir_okay=False), required=False)
@click.option("--days", type=_DAYS, default=30, show_default=True, help="The list is good for.")
def crl(directory: Path, certificate: Path | None, days: float) -> None:
    """Write the list of revoked certificates anew, with CERTIFICATE in it if one is given."""
    from cryptography import x509

    from agent.host.files import read_bounded
    from agent.pki.authority import Authority

    with _failing():
        authority = Authority.open(directory)
        if certificate is not None:
            try:
                found = x509.load_pem_x509_certificate(read_bounded(certificate, 1 << 20))
            except ValueError:
                raise Failure(Exit.USAGE, f"{certificate} holds no certificate") from None
            authority.revoke(found.serial_number)
        path = authority.publish_crl(days=days)
    click.echo(f"{path}: {len(authority.record.revoked)} revoked, good for {days:g} days")


def _check_host_id(text: str) -> None:
    from agent.config_fields import CHECKS

    if reason := CHECKS["host_id"](text):
        raise Failure(Exit.USAGE, f"--host: {reason}")


def _pem(certificate: object) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    assert isinstance(certificate, x509.Certificate)
    return certificate.public_bytes(Encoding.PEM)


@contextmanager
def _failing() -> Iterator[None]:
    from agent.errors import AgentError, describe

    try:
        yield
    except AgentError as error:
        raise Failure(Exit.FAILED, describe(error)) from None
