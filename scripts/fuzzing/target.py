"""One entry under libFuzzer: `python -m scripts.fuzzing.target ENTRY LIBFUZZER-ARGUMENTS`.

Ends the process: with 0 after the runs that were asked for, else with what was found kept.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["agent"]):
    from scripts.fuzzing.entries import ENTRIES

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    entry = ENTRIES[name]
    atheris.Setup([sys.argv[0], *arguments], entry.holds)
    atheris.Fuzz()
