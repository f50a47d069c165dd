"""What it costs the agent to keep enclaves verified: the gate asks guests of another process.

The CPU of this process alone, over whole verifications: connection, TLS, nonce, document, verdict.
The guests sign and answer in theirs.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time

import msgspec

from agent.attestation.policy import EvidencePolicy
from agent.attestation.roots import Trust
from agent.attestation.snp_tcb import Product
from agent.attestation.verifier import Verifier
from agent.config import AttestationConfig
from agent.model.enclave import Endpoint
from bench.figures import Bound, Figure
from simulator.rows import enclave, release
from tests.fakes.evidence_guest import Clock, Told
from tests.fakes.snp_chain import MEASUREMENT

_ENCLAVES, _INTERVAL_S, _PERCENT = 8, 60, 0.2
_ROUNDS = 12


async def measure_again() -> Figure:
    """Raises RuntimeError for evidence that is not believed: nothing was measured then."""
    logging.getLogger("agent").addHandler(logging.NullHandler())  # not onto this screen
    command = [sys.executable, "-m", "tests.fakes.evidence_guest", str(_ENCLAVES)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as guests:
        try:
            assert guests.stdout is not None
            line = await asyncio.to_thread(guests.stdout.readline)
            cpu_s = await _round_cpu_s(msgspec.json.decode(line, type=Told))
        finally:
            guests.kill()
    return Figure(
        f"{_ENCLAVES} enclaves verified again every {_INTERVAL_S} s",
        100 * cpu_s / _INTERVAL_S,
        "% of a core",
        bound=Bound(_PERCENT),
        note=f"{1000 * cpu_s / _ENCLAVES:.2f} ms of CPU each, with connection and TLS",
    )


async def _round_cpu_s(told: Told) -> float:
    """CPU of one round over all of them; the first, which loads the libraries, is left out."""
    gate = Verifier(
        policy=EvidencePolicy(config=AttestationConfig(), allow_simulated=True),
        trust=Trust(simulated={told.root: Product.MILAN}),
        clock=Clock(),
    )
    await _verify_all(gate, told)
    began = time.process_time()
    for _ in range(_ROUNDS):
        await _verify_all(gate, told)
    return (time.process_time() - began) / _ROUNDS


async def _verify_all(gate: Verifier, told: Told) -> None:
    of = release(snp_measurement=MEASUREMENT.hex())
    for number, port in enumerate(told.ports):
        row, where = enclave(f"guest-{number}"), Endpoint(address="127.0.0.1", port=port)
        verdict = await gate.verify(row, of, where, told.spki_sha256)
        if not verdict.admits:
            raise RuntimeError(f"the bench's own guest is refused: {verdict.checks}")
