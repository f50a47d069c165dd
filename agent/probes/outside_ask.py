"""One attempt to be a client of a listener: connect, and where it speaks TLS shake hands.

A guest's server sees nothing odd: the handshake is carried to its end and the session is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

from agent.host.contact import Door, NoAnswerError, TcpConnection, tell
from agent.host.peer_key import UnreadableKeyError, spki_sha256
from agent.model.enclave import Endpoint
from agent.probes.port import OutsideListener

_SETTLE_S = 0.15
_MOST_BYTES = 1 << 16


async def ask_listener(
    sock: socket.socket,
    to: Endpoint,
    listener: OutsideListener,
    *,
    context: ssl.SSLContext,
    timeout_s: float,
    relayed: bool,
) -> str | None:
    """What is wrong with it, in a few words; None: a client is served. The caller closes `sock`.

    `relayed`: a process accepts before the guest is asked, so that the connection must live for a
    moment. Raises nothing that who listens there could cause.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, (to.address, to.port))
            if listener.tls:
                return _judge(await _key_of(sock, context, listener.server_name), listener)
            if relayed:
                await TcpConnection(sock).settle(_SETTLE_S)
    except NoAnswerError as error:
        return str(error)
    except (TimeoutError, OSError, UnreadableKeyError) as error:
        return tell(error, timeout_s)
    return None


def _judge(key: str, listener: OutsideListener) -> str | None:
    if listener.keys and key not in listener.keys:
        return f"who answers there shows the TLS key sha256:{key}, which is not the enclave's"
    return None


async def _key_of(sock: socket.socket, context: ssl.SSLContext, server_name: str | None) -> str:
    """Of a handshake that is done.

    Raises NoAnswerError, OSError (ssl.SSLError with it), UnreadableKeyError.
    """
    loop = asyncio.get_running_loop()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = context.wrap_bio(incoming, outgoing, server_hostname=server_name)
    done = False
    while not done:
        try:
            session.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            pass
        if outgoing.pending:
            await loop.sock_sendall(sock, outgoing.read())
        if not done:
            heard = await loop.sock_recv(sock, _MOST_BYTES)
            if not heard:
                raise NoAnswerError("accepted, then closed", Door.CLOSED)
            incoming.write(heard)
    key = spki_sha256(session)
    with contextlib.suppress(ssl.SSLError):
        session.unwrap()  # says goodbye, and would wait for an answer
    if outgoing.pending:
        await loop.sock_sendall(sock, outgoing.read())
    return key
