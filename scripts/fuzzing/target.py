"""One entry under libFuzzer, or all of them: `python -m scripts.fuzzing.target NAME ARGUMENTS`.

NAME is an entry, or `together`: the first byte of each input says then whose it is. The arguments
are libFuzzer's, which starts itself anew (-merge) by the program that FUZZ_PROGRAM names. Ends the
process: with 0 after the runs that were asked for, else with what was found kept.
"""

from __future__ import annotations

import os
import sys

import atheris

with atheris.instrument_imports(include=["agent"]):
    from scripts.fuzzing.corpus import addressee
    from scripts.fuzzing.entries import ENTRIES

TOGETHER = "together"


def _together(data: bytes) -> None:
    if data:
        name, rest = addressee(data)
        ENTRIES[name].holds(rest)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    holds = _together if name == TOGETHER else ENTRIES[name].holds
    program = os.environ.get("FUZZ_PROGRAM", sys.argv[0])
    atheris.Setup([program, *arguments], holds)
    atheris.Fuzz()
