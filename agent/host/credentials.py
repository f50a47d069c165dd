"""Bytes encrypted for this host alone, by systemd-creds(1) of systemd 250 or later.

The key is the host's own, its TPM's, or both, as far as they are there (`--with-key=auto`); the
name is part of what is encrypted, so that one credential cannot be put in another's place. Values
pass through pipes and stand in no argument, file or error.
"""

from __future__ import annotations

import asyncio
import shutil

from agent.errors import AgentError
from agent.host.commands import CommandError, CompletedCommand, RunCommand

PROGRAM = "systemd-creds"
_TIMEOUT_S = 60.0  # a TPM takes its time, and many may ask it at once
_AT_ONCE = 4


class CredentialError(AgentError):
    """It cannot be encrypted or decrypted here and now. Holds nothing of the value."""

    @property
    def code(self) -> str:
        return "credential_failed"


def why_none() -> str | None:
    """Why this host cannot have credentials at all, or None."""
    if shutil.which(PROGRAM) is None:
        return f"{PROGRAM} is not there"
    return None


class CredentialCipher:
    """Encrypts and decrypts. `run` reaches the host's key."""

    def __init__(self, run: RunCommand) -> None:
        self._run = run
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def encrypt(self, name: str, value: bytes) -> bytes:
        """Text to be kept anywhere. Raises CredentialError."""
        return await self._do(value, "encrypt", f"--name={name}", "--with-key=auto")

    async def decrypt(self, name: str, sealed: bytes) -> bytes:
        """What was encrypted under this name on this host. Raises CredentialError."""
        return await self._do(sealed, "decrypt", f"--name={name}", "--newline=no")

    async def _do(self, data: bytes, verb: str, *words: str) -> bytes:
        argv = (PROGRAM, verb, *words, "-", "-")
        try:
            async with self._places:
                done = await self._run(argv, stdin=data, timeout_s=_TIMEOUT_S)
        except CommandError as error:
            raise CredentialError(str(error)) from error
        if done.status != 0:
            raise CredentialError(f"{PROGRAM} {verb}: {_complaint(done)}")
        return done.stdout


def _complaint(done: CompletedCommand) -> str:
    """Its last line; what comes before are remarks on the host's key."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"exit status {done.status}"
