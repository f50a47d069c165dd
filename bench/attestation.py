"""Verifying evidence, beside the bare signature operations that it cannot do without.

By turns with them in one process: whole documents from bytes to a verdict, a report with its
whole chain, and one whose ARK and ASK were checked before; then quotes and GPUs. And what a host
pays that has no evidence: nothing.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from agent.attestation.collateral import Endorsements
from agent.attestation.roots import Trust
from agent.attestation.snp import verify_report
from agent.attestation.snp_certificate import ca_key, chip_key, parse_certificate
from agent.attestation.snp_chain import forget_authorities
from agent.attestation.snp_report import parse_report
from bench.attestation_again import measure_again
from bench.attestation_vendors import measure_vendors
from bench.figures import Bound, Figure, Table, median
from bench.options import Options
from bench.place import Place
from bench.show import Show
from tests.fakes.attested_guest import Guest
from tests.fakes.snp_chain import NOW, FakeAmd

_TIMES = 200
_SHA384 = hashes.SHA384()
# The gate of a host is open; whatever verifies is counted.
_IDLE = """
import sys, agent.attestation.opening, agent.daemon.parts
own = tuple(f"agent.attestation.{name}" for name in ("snp.", "tdx.", "gpu.", "appraisal."))
rest = ("cryptography.", "dcap_qvl.")
print(sum(f"{name}.".startswith(own + rest) for name in sys.modules))
"""
_PSS = padding.PSS(padding.MGF1(_SHA384), 48)
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class _Evidence:
    """A report of a chip made for this run; its operations are those of a genuine one."""

    report: bytes
    given: Endorsements
    trust: Trust
    now: dt.datetime

    def warm(self) -> object:
        return verify_report(self.report, self.given, self.trust, self.now)

    def full(self) -> object:
        forget_authorities()
        return self.warm()


async def measure(place: Place, options: Options, show: Show) -> Table:
    """Medians of many, in rounds that other tasks may come between."""
    del place
    amd = FakeAmd()
    evidence = _Evidence(amd.report(), amd.endorsements, amd.trust, NOW)
    guest = Guest(amd=amd)
    body = guest.v3()
    bare_full, bare_warm = _bare(evidence)
    works: dict[str, Work] = {
        "full": evidence.full,
        "bare full": bare_full,
        "warm": evidence.warm,
        "bare warm": bare_warm,
        "document": lambda: guest.judged(body),
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    for number in range(options.rounds):
        _round(works, took)
        show.line(f"{number + 1}: SNP, whole chain {1000 * median(took['full']):.3f} ms")
        await asyncio.sleep(0)
    table = _table({name: 1000 * median(values) for name, values in took.items()}, len(body))
    show.line("TDX and GPU, warm and cold; guests verified again")
    figures, notes = await asyncio.to_thread(measure_vendors)
    table.figures += [*figures, await measure_again(), await asyncio.to_thread(_loaded)]
    table.notes += notes
    return table


def _loaded() -> Figure:
    done = subprocess.run(
        [sys.executable, "-c", _IDLE], capture_output=True, text=True, check=True
    )
    what = "modules of verifiers and their libraries that a host without evidence loads"
    return Figure(what, float(done.stdout), "", bound=Bound(0))


def _round(works: dict[str, Work], took: dict[str, list[float]]) -> None:
    """By turns, one after the other, so that what disturbs one disturbs all."""
    gc.collect()
    for _ in range(_TIMES):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            took[name].append(time.perf_counter() - began)


def _bare(evidence: _Evidence) -> tuple[Work, Work]:
    """The signatures alone: nothing is parsed, looked up or compared."""
    ark, ask, leaf = (
        parse_certificate(data, "it")
        for data in (evidence.given.ark, evidence.given.ask, evidence.given.leaf)
    )
    root, issuer, key = ca_key(ark, 1), ca_key(ask, 0), chip_key(leaf)
    report = parse_report(evidence.report)
    signature = encode_dss_signature(report.signature_r, report.signature_s)

    def warm() -> None:
        issuer.verify(leaf.signature, leaf.tbs, _PSS, _SHA384)
        key.verify(signature, report.signed, ec.ECDSA(_SHA384))

    def full() -> None:
        root.verify(ark.signature, ark.tbs, _PSS, _SHA384)
        root.verify(ask.signature, ask.tbs, _PSS, _SHA384)
        warm()

    return full, warm


def _table(ms: dict[str, float], size: int) -> Table:
    table = Table("attestation: evidence verified")
    table.figures = [
        Figure(
            "SEV-SNP, whole chain",
            ms["full"],
            "ms",
            baseline=ms["bare full"],
            baseline_is="its 4 signatures",
            bound=Bound(1.0),
        ),
        Figure(
            "SEV-SNP, ARK and ASK checked before",
            ms["warm"],
            "ms",
            baseline=ms["bare warm"],
            baseline_is="its 2 signatures",
            bound=Bound(0.6),
        ),
        Figure("a document v3 of it, from bytes to a verdict", ms["document"], "ms"),
    ]
    table.notes = [
        f"medians; the document has {size} bytes; its certificates are made for the run"
    ]
    return table
