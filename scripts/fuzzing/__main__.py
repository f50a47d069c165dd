"""`scripts/fuzz`, once the environment is there: every entry under libFuzzer, alone or together.

Exit status 1 when one raised what it must not; the input is kept then. See `corpus` for where.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.fuzzing.corpus import FOUND, ROOT, addressed, addressee, keep, raised, reached
from scripts.fuzzing.entries import ENTRIES

TOGETHER = "together"
_STUCK_S = 10  # for one input
_STUCK_BESIDE_OTHERS_S = 300  # where the processors are others'
_WITH_US = ("setpriv", "--pdeathsig", "KILL")
_WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_ -]{2,30}")
_MOST_WORDS = 400
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def _begun(name: str, place: Path) -> Path:
    """A directory of what a run begins at: good bytes, and what reached something before."""
    seeds = place / "seeds"
    seeds.mkdir()
    if name == TOGETHER:
        inputs = [addressed(one, data) for one in ENTRIES for data in _known(one)]
    else:
        inputs = _known(name)
    for number, seed in enumerate(inputs):
        (seeds / str(number)).write_bytes(seed)
    return seeds


def _words(seeds: Path, place: Path) -> Path:
    """A dictionary of the words in good bytes: parsers in C tell libFuzzer nothing of them."""
    words: set[bytes] = set()
    for seed in sorted(seeds.iterdir()):
        words.update(_WORD.findall(seed.read_bytes()))
    path = place / "words"
    chosen = sorted(words, key=lambda word: (len(word), word))[:_MOST_WORDS]
    path.write_text("".join(f'"{word.decode()}"\n' for word in chosen))
    return path


def _known(name: str) -> list[bytes]:
    return [*ENTRIES[name].seeds(), *reached(name)]


def _run(name: str, place: Path, *arguments: str) -> tuple[str, bool]:
    """What libFuzzer said, and whether all inputs held; those that did not are kept."""
    target = [*_WITH_US, sys.executable, "-m", "scripts.fuzzing.target", name]
    program = place / "program"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(target)} "$@"\n')
    program.chmod(0o700)
    done = subprocess.run(
        [*target, *arguments, f"-artifact_prefix={place}/bad-", "-max_len=16384"],
        cwd=ROOT,
        env=os.environ | {"FUZZ_PROGRAM": str(program)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-40:]), file=sys.stderr)
    slow = set(place.glob("bad-slow-unit-*"))  # which tell of the machine's load
    for bad in set(place.glob("bad-*")) - slow:
        whose, data = name, bad.read_bytes()
        if name == TOGETHER and data:
            whose, data = addressee(data)
        print(f"kept: {raised(whose, data)}", file=sys.stderr)
    return done.stdout, done.returncode == 0


def fuzz(name: str, runs: int, seconds: int, *, keeping: bool) -> tuple[int, bool]:
    """Inputs tried, and whether all of them held."""
    found = FOUND / name
    with tempfile.TemporaryDirectory(prefix="ea-fuzz.") as directory:
        place = Path(directory)
        seeds = _begun(name, place)
        limits = [f"-runs={runs}", f"-max_total_time={seconds}", "-print_final_stats=1"]
        limits += [f"-dict={_words(seeds, place)}"]
        if name == TOGETHER:
            limits += [f"-timeout={_STUCK_BESIDE_OTHERS_S}", str(seeds)]
        else:
            found.mkdir(parents=True, exist_ok=True)
            limits += [f"-timeout={_STUCK_S}", str(found), str(seeds)]
        said, held = _run(name, place, *limits)
        if keeping and held:
            held = _minimised(name, found, seeds, place)
    executed = _EXECUTED.search(said)
    return int(executed[1]) if executed else 0, held


def _minimised(name: str, found: Path, seeds: Path, place: Path) -> bool:
    """Keep the few inputs that reach all that was reached; good bytes are made anew each time."""
    least = place / "least"
    least.mkdir()
    _, held = _run(name, place, "-merge=1", str(least), str(seeds), str(found))
    good = set(ENTRIES[name].seeds())
    kept = keep(name, {path.read_bytes() for path in least.iterdir()} - good)
    print(f"{name}: {kept} inputs kept", flush=True)
    return held


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=" ".join(ENTRIES))
    parser.add_argument("--runs", type=int, default=-1, help="inputs an entry")
    parser.add_argument("--seconds", type=int, default=600, help="at most, an entry")
    parser.add_argument("--together", action="store_true", help="all of them in one process")
    parser.add_argument("--keep", action="store_true", help="what reaches all that was reached")
    given = parser.parse_args()
    if unknown := set(given.entries) - set(ENTRIES):
        parser.error(f"no such entry: {', '.join(sorted(unknown))}")
    if given.together and (given.entries or given.keep):
        parser.error("--together is for all entries, and keeps nothing")
    total, broken = 0, []
    for name in [TOGETHER] if given.together else given.entries or ENTRIES:
        executed, held = fuzz(name, given.runs, given.seconds, keeping=given.keep)
        total += executed
        broken += [] if held else [name]
        print(f"{name}: {executed} inputs{'' if held else ', NOT ALL HELD'}", flush=True)
    print(f"{total} inputs, unhandled exceptions in: {', '.join(broken) or 'none'}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
