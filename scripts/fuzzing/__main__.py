"""`scripts/fuzz`, once the environment is there: every entry under libFuzzer, by turns.

Inputs that raised what they must not are kept in tests/attestation/corpus, where a test replays
them for ever. Those that reached something new are kept in .cache/fuzz: the next run begins there.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from scripts.fuzzing.entries import ENTRIES

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "attestation" / "corpus"
FOUND = ROOT / ".cache" / "fuzz"
_EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")


def fuzz(name: str, runs: int, seconds: int, place: Path) -> tuple[int, bool]:
    """Inputs tried, and whether all of them held."""
    seeds, found, kept = place / "seeds", FOUND / name, CORPUS / name
    for directory in (seeds, found):
        directory.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(ENTRIES[name].seeds()):
        (seeds / str(number)).write_bytes(seed)
    kept.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "scripts.fuzzing.target", name, f"-runs={runs}"]
    command += [f"-max_total_time={seconds}", f"-artifact_prefix={kept}/", "-timeout=10"]
    command += ["-print_final_stats=1", "-max_len=16384", str(found), str(seeds)]
    done = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    executed = _EXECUTED.search(done.stdout)
    if done.returncode:
        print("\n".join(done.stdout.splitlines()[-40:]), file=sys.stderr)
    if not any(kept.iterdir()):
        kept.rmdir()
    return int(executed[1]) if executed else 0, done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("entries", nargs="*", metavar="ENTRY", help=" ".join(ENTRIES))
    parser.add_argument("--runs", type=int, default=100_000, help="inputs an entry")
    parser.add_argument("--seconds", type=int, default=600, help="at most, an entry")
    given = parser.parse_args()
    if unknown := set(given.entries) - set(ENTRIES):
        parser.error(f"no such entry: {', '.join(sorted(unknown))}")
    total, broken = 0, []
    for name in given.entries or ENTRIES:
        with tempfile.TemporaryDirectory(prefix="ea-fuzz.") as place:
            executed, held = fuzz(name, given.runs, given.seconds, Path(place))
        total += executed
        broken += [] if held else [name]
        print(f"{name}: {executed} inputs{'' if held else ', NOT ALL HELD'}", flush=True)
    print(f"{total} inputs, unhandled exceptions in: {', '.join(broken) or 'none'}")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
