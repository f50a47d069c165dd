"""Where the agent is: a socket of this host, or the RPC of another one over mutual TLS.

A remote agent is whoever has a certificate of the fleet's authority that speaks for a host, and
for the named one if one is named: another member of the fleet that listens there is sent nothing.
"""

from __future__ import annotations

import http.client
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from agent.cli.exits import Exit, Failure

if TYPE_CHECKING:
    import ssl

_PORT = 8471
_ADDRESS = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[^/:\[\]?#@\s]+)(?::(\d{1,5}))?/?")


class Reach(Protocol):
    """A way to the agent. As text: its name, for messages."""

    @property
    def headers(self) -> dict[str, str]:
        """What goes with each change, by this way."""
        ...

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """One that is not open yet."""
        ...

    def lost(self, error: OSError | http.client.HTTPException) -> Failure:
        """What went wrong on the way, with what to do about it."""
        ...


@dataclass(frozen=True)
class Local:
    """The agent's socket."""

    path: Path

    @property
    def headers(self) -> dict[str, str]:
        return {}

    def __str__(self) -> str:
        return str(self.path)

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        return _UnixConnection(self.path, timeout_s)

    def lost(self, error: OSError | http.client.HTTPException) -> Failure:
        match error:
            case FileNotFoundError() | ConnectionRefusedError():
                remedy = "is it running? systemctl status enclave-agent, or: enclave-agent run"
                return Failure(Exit.UNREACHABLE, f"no agent listens on {self}", [remedy])
            case PermissionError():
                remedy = "run this as root, or join the group enclave-agent"
                return Failure(Exit.UNREACHABLE, f"you may not use {self}", [remedy])
        return _broken(self, error)


@dataclass(frozen=True)
class Remote:
    """An agent's RPC. `host_id`: of the one that is meant; None: any host of the fleet.

    `epoch`: a coordinator's, which its changes must say.
    """

    host: str
    port: int
    certificate: Path
    key: Path
    ca: Path
    host_id: str | None = None
    epoch: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.epoch is None else {"Coordinator-Epoch": str(self.epoch)}

    @classmethod
    def of(
        cls, url: str, *, certificate: Path | None, key: Path | None, ca: Path | None
    ) -> Remote:
        """From `https://HOST[:PORT]`; Failure USAGE that names what is wrong or missing."""
        found = _ADDRESS.fullmatch(url)
        if found is None or not 0 < int(found[2] or _PORT) < 65536:
            raise Failure(Exit.USAGE, f"--url '{url[:80]}': must be https://HOST[:PORT]")
        if certificate is None or key is None or ca is None:
            given = {"certificate": certificate, "key": key, "ca": ca}
            wanted = ", ".join(f"--{name}" for name, path in given.items() if path is None)
            remedy = "a member's certificate, as `enclave-agent pki issue` makes it"
            raise Failure(Exit.USAGE, f"--url needs {wanted}", [remedy])
        return cls(found[1].strip("[]"), int(found[2] or _PORT), certificate, key, ca)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"https://{host}:{self.port}"

    def connection(self, timeout_s: float) -> http.client.HTTPConnection:
        return _MutualTls(self, timeout_s)

    def lost(self, error: OSError | http.client.HTTPException) -> Failure:
        import ssl

        if isinstance(error, ssl.SSLCertVerificationError):
            why = getattr(error, "verify_message", "") or str(error.args[-1])
            return Failure(Exit.UNREACHABLE, f"{self} is not who is meant: {why}")
        if isinstance(error, ssl.SSLError | ConnectionResetError):
            remedy = "does --certificate belong to this fleet, with a role, and is it in force?"
            return Failure(Exit.UNREACHABLE, f"{self} ended the connection", [remedy])
        if isinstance(error, ConnectionRefusedError | socket.gaierror):
            why = error.strerror or str(error)
            return Failure(Exit.UNREACHABLE, f"no agent answers on {self}: {why}")
        return _broken(self, error)


def _broken(where: Reach, error: OSError | http.client.HTTPException) -> Failure:
    if isinstance(error, TimeoutError):
        return Failure(Exit.UNREACHABLE, f"the agent on {where} does not answer")
    text = str(error) or type(error).__name__
    return Failure(Exit.UNREACHABLE, f"the connection to {where} broke: {text}")


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _MutualTls(http.client.HTTPSConnection):
    def __init__(self, to: Remote, timeout_s: float) -> None:
        super().__init__(to.host, to.port, timeout=timeout_s, context=_context(to))
        self._to = to

    def connect(self) -> None:
        """With the look at the peer's name, before anything is said."""
        import ssl

        from agent.pki.names import peer_uri

        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        found = peer_uri(self.sock.getpeercert())
        _, is_host, host_id = (found or "").partition("/host/")
        if not is_host or (self._to.host_id is not None and host_id != self._to.host_id):
            self.close()
            wanted = f"host {self._to.host_id}" if self._to.host_id else "a host"
            raise ssl.SSLCertVerificationError(
                1, f"its certificate says {found or 'no single URI'}, not {wanted}"
            )


def _context(to: Remote) -> ssl.SSLContext:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # who the peer is, its URI says
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(to.certificate, to.key, password=_no_password)
        context.load_verify_locations(cafile=to.ca)
    except FileNotFoundError:
        missing = next(
            (one for one in (to.certificate, to.key, to.ca) if not one.exists()), to.certificate
        )
        raise Failure(Exit.USAGE, f"{missing}: there is no such file") from None
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        text = "cannot be used as a certificate, its key, and an authority"
        names = f"{to.certificate}, {to.key}, {to.ca}"
        raise Failure(Exit.USAGE, f"{names}: {text}: {error}") from None
    return context


def _no_password() -> str:
    """A key that needs one is refused; without this, OpenSSL would ask on the terminal."""
    raise ValueError("the key is encrypted")
