"""Whole documents, changed in one to three places, before the verifier: a verdict, nothing else.

Byte mutations of a document end at its base64 or its hashes. Here what is packed inside (keys,
devices, collateral, reports) is unpacked, changed and packed again with the right hashes, so that
every reader behind them is reached. `python -m scripts.fuzzing.documents RUNS [SEED]`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from agent.attestation.document_v3 import report_data_for
from agent.attestation.port import Verdict
from agent.config import AttestationConfig
from tests.fakes.attested_guest import NONCE, Guest
from tests.fakes.snp_chain import FakeAmd
from tests.fakes.tdx_guest import TdxGuest, gpu_item, switch_item

_RAW = "@raw@"  # in a text: what follows stands in the document as it is, without quotes
NASTY: tuple[Any, ...] = (
    None, True, 0, -1, 2**63, 2**64, 10**30, 1.5, -0.0, "", "0", "\ud800", "\udfffx", "\0", "é",
    [], {}, [[]], {"": ""}, [None], "=" * 5, "A" * 5000, "../..", "%ff", "https://[", "9" * 400,
    f"{_RAW}1e999", f"{_RAW}-1E-999", f"{_RAW}NaN", f"{_RAW}{'9' * 5000}", f"{_RAW}{'[' * 3000}",
    f"{_RAW}{'[' * 40}{']' * 40}", f'{_RAW}{{"a":1,"a":2}}', f'{_RAW}"\\ud800"', f"{_RAW}tru",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:60-23:59", "2026-02-30T00:00:00Z",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A good document, and what judges it."""

    body: bytes
    judge: Callable[[bytes], Verdict]


@cache
def sources() -> tuple[Source, ...]:
    """Both versions of SEV-SNP, with and without a list, and TDX with a GPU and switches."""
    amd = FakeAmd()
    snp = Guest(amd=amd, crls=lambda: (amd.crl(5),))
    old = snp.but(config=AttestationConfig(allow_unfresh=True))
    tdx = TdxGuest(items=lambda: [gpu_item(1), switch_item(1)])
    one_gpu = msgspec.structs.replace(tdx.expected, gpus=1)
    tdx = tdx.but(expected=one_gpu)
    return (
        Source(snp.v3(), snp.judged),
        Source(old.v2(), lambda body: old.judged(body, amd.endorsements)),
        Source(tdx.v3(), tdx.judged),
        Source(tdx.but(make={"version": 5}).v3(), tdx.judged),
    )


def mutated(source: Source, rng: random.Random) -> bytes:
    """The document, changed."""
    if rng.random() < 0.1:
        return _bytes(source.body, rng)
    document = json.loads(source.body)
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _value(document, rng)
    if rng.random() < 0.9:
        _agree(document)
    return _written(document)


def _value(value: Any, rng: random.Random) -> Any:
    """One place in it, at any depth, through whatever is packed inside."""
    if isinstance(value, dict) and value and rng.random() < 0.97:
        (name,) = rng.choices(list(value), [_weight(inner) for inner in value.values()])
        changed = {**value, name: _value(value[name], rng)}
        match rng.randrange(40):
            case 0:
                del changed[name]
            case 1:
                changed[rng.choice(("more", "\ud800", ""))] = rng.choice(NASTY)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.97:
        index = rng.randrange(len(value))
        changed_list = [*value[:index], _value(value[index], rng), *value[index + 1 :]]
        match rng.randrange(40):
            case 0:
                del changed_list[index]
            case 1:
                changed_list *= rng.choice((2, 40))
        return changed_list
    if isinstance(value, str) and rng.random() < 0.8:
        return _text(value, rng)
    return rng.choice(NASTY)


def _weight(value: Any) -> int:
    """What holds more is changed more often."""
    return 1 if isinstance(value, str) and len(value) < 100 else 8


def _text(text: str, rng: random.Random) -> Any:
    """Packed JSON and bytes are changed inside, other text by a character."""
    packed = _unpacked(text)
    if packed is None:
        return _bytes(text.encode("utf-8", "surrogatepass"), rng).decode("latin-1")
    try:
        inner = json.loads(packed)
    except (ValueError, RecursionError):
        return base64.b64encode(_bytes(packed, rng)).decode()
    return base64.b64encode(_written(_value(inner, rng))).decode()


def _unpacked(text: str) -> bytes | None:
    if len(text) < 40:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return None


def _bytes(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 48))) + data[at:]
        case 2:
            return data[:at] + data[at + rng.choice((1, 2, 4, 48)) :]
        case 3:
            return data[:at] + b"\xff" * rng.choice((1, 4, 300)) + data[at + 4 :]
    return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]


def _agree(document: Any) -> None:
    """Make the hashes those of what is in it now, as far as they are where they belong."""
    try:
        keys, devices = (
            base64.b64decode(document[name]) for name in ("crypto_material", "device_evidence")
        )
        endorsed = document["cpu_evidence"]["endorsed"]
        endorsed["crypto_material_hash"] = hashlib.sha256(keys).hexdigest()
        endorsed["device_evidence_hash"] = hashlib.sha256(devices).hexdigest()
        document["challenge"]["report_data"] = report_data_for(NONCE, keys, devices).hex()
    except (KeyError, TypeError, ValueError):
        return


def _written(value: Any) -> bytes:
    text = json.dumps(value)
    while (at := text.find(f'"{_RAW}')) >= 0:
        quoted, end = json.JSONDecoder().raw_decode(text, at)
        text = text[:at] + quoted.removeprefix(_RAW) + text[end:]
    return text.encode()


def run(runs: int, seed: int) -> Counter[str]:
    """How the verdicts fell out. Raises whatever the verifier must not raise, with its document
    written beside.
    """
    rng, found = random.Random(seed), Counter[str]()
    known = sources()
    for _ in range(runs):
        source = rng.choice(known)
        body = mutated(source, rng)
        try:
            verdict = source.judge(body)
            # What is told of it can be written down and sent.
            msgspec.json.encode(verdict)
        except BaseException:
            name = f"document-{hashlib.sha256(body).hexdigest()[:16]}"
            Path(name).write_bytes(body)
            print(f"kept: {name}", file=sys.stderr)
            raise
        failed = [check.code for check in verdict.checks if not check.passed]
        found[failed[-1] if failed else "accepted"] += 1
    return found


def main() -> int:
    runs = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    began = time.monotonic()
    found = run(runs, seed)
    for code, count in found.most_common():
        print(f"{count:9} {code}")
    print(f"{runs} documents in {time.monotonic() - began:.0f} s, seed {seed}: all judged")
    return 0


if __name__ == "__main__":
    sys.exit(main())
