"""One request on a connection of its own, in the clear or over TLS, and what can become of it."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time

REQUEST = b"GET / HTTP/1.0\r\nHost: bench\r\n\r\n"


class Fault(Exception):
    """A request or stream that did not end as it should."""

    def __init__(self, text: str, *, is_reset: bool = False) -> None:
        super().__init__(text)
        self.is_reset = is_reset


def tls_context() -> ssl.SSLContext:
    """Trusts any certificate: the enclave's key is for the agent to judge."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def member_context(certificate: str, key: str, ca: str) -> ssl.SSLContext:
    """To connect as a member of a fleet. Whom one speaks to, its URI would say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(ca)
    context.load_cert_chain(certificate, key)
    return context


class Asker:
    """Asks one address. Raises Fault, and nothing else, for what a peer or the network does."""

    def __init__(self, address: str, plain_port: int, https_port: int, timeout_s: float) -> None:
        self._plain = (address, plain_port)
        self._https = (address, https_port)
        self._timeout_s = timeout_s
        self._tls = tls_context()

    async def ask(self, tls: bool) -> str:
        """Returns who answered: the enclave's id."""
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await (self._over_tls() if tls else self._in_the_clear())
        except (ConnectionResetError, BrokenPipeError) as error:
            raise Fault("reset", is_reset=True) from error
        except ConnectionRefusedError as error:
            raise Fault("refused") from error
        except TimeoutError as error:
            raise Fault(f"no answer in {self._timeout_s:g} s") from error
        except OSError as error:
            raise Fault(f"{type(error).__name__}: {error.strerror or error}") from error
        return answerer(answer)

    async def _in_the_clear(self) -> bytes:
        """By the bare socket, which costs the generator a third of what streams do."""
        loop = asyncio.get_running_loop()
        answer = bytearray()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            await loop.sock_connect(sock, self._plain)
            await loop.sock_sendall(sock, REQUEST)
            while piece := await loop.sock_recv(sock, 65536):
                answer += piece
        return bytes(answer)

    async def _over_tls(self) -> bytes:
        reader, writer = await asyncio.open_connection(*self._https, ssl=self._tls)
        try:
            writer.write(REQUEST)
            return await reader.read(-1)
        finally:
            writer.transport.abort()

    async def stream(self, tls: bool, seconds: float) -> None:
        """Hold a stream open until the guest ends it, in good order and not before its time."""
        began, tail = time.monotonic(), b""
        where, context = (self._https, self._tls) if tls else (self._plain, None)
        request = f"GET /stream?seconds={seconds:g} HTTP/1.1\r\nHost: bench\r\n"
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_connection(*where, ssl=context)
            try:
                writer.write(f"{request}Connection: close\r\n\r\n".encode())
                while piece := await asyncio.wait_for(reader.read(65536), self._timeout_s):
                    tail = (tail + piece)[-64:]
            finally:
                writer.transport.abort()
        except (ConnectionResetError, BrokenPipeError) as error:
            raise Fault("stream reset", is_reset=True) from error
        except TimeoutError as error:
            raise Fault(f"stream silent for {self._timeout_s:g} s") from error
        except OSError as error:
            raise Fault(f"stream: {type(error).__name__}") from error
        lasted = time.monotonic() - began
        if not tail.endswith(b"0\r\n\r\n") or lasted < seconds - 0.5:
            raise Fault(f"stream broke off after {lasted:.0f} s")


def answerer(answer: bytes) -> str:
    """Who gave this whole answer: the enclave's id. Raises Fault unless it is a good one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.split(b"\r\n", 1)[0].decode("ascii", "replace")
    if " 200 " not in status:
        raise Fault(status or "empty answer")
    try:
        return str(json.loads(body)["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise Fault("cut off answer") from error
