"""`scripts/conformance STAGE < input.json`: the verdict on standard output, why on standard error.

Exit codes of the public contract: 0 accepted, 10 rejected, 20 unsupported, 30 malformed input,
1 a defect of ours.
"""

from __future__ import annotations

import json
import sys

from scripts.conformance_contract.inputs import MAX_INPUT_BYTES
from scripts.conformance_contract.stages import STAGES, answer


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] in ("-h", "--help"):
        stages = "\n  ".join((*STAGES, "capabilities"))
        print(f"usage: scripts/conformance STAGE < input.json\n  {stages}", file=sys.stderr)
        return 0 if arguments in (["-h"], ["--help"]) else 1
    (stage,) = arguments
    raw = b"" if stage == "capabilities" else sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    found = answer(stage, raw)
    if found.note:
        print(found.note, file=sys.stderr)
    if found.output is not None:
        print(json.dumps(found.output, indent=2))
    return found.exit


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
