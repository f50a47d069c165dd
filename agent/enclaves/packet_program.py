"""A small assembler of classic BPF, the kernel's oldest packet filter language. Pure.

Programs run as direct-action filters of `tc` (cls_bpf): what they return is the verdict. The
kernel ends a program that reads beyond its packet with the value 0, which would be PASS: so a
program must have compared the packet's length before it reads.

Source of the encoding: linux/bpf_common.h, linux/filter.h (ancillary offsets), linux/pkt_cls.h.
"""

from __future__ import annotations

from typing import NamedTuple

PASS, DROP = 0, 2  # TC_ACT_OK, TC_ACT_SHOT
WORD, HALF, BYTE = 0x20, 0x28, 0x30  # BPF_LD | BPF_ABS with each size
EQUAL, GREATER_OR_EQUAL, HAS_BITS = 0x15, 0x35, 0x45  # BPF_JMP | … | BPF_K
MARK, VLAN_PRESENT = 0xFFFFF000 + 20, 0xFFFFF000 + 48  # SKF_AD_OFF + …
_LENGTH, _AND, _RETURN, _JUMP = 0x80, 0x54, 0x06, 0x05
_FARTHEST = 255


class Instruction(NamedTuple):
    """One instruction, as `tc` prints and takes it."""

    code: int
    jt: int
    jf: int
    k: int


Program = tuple[Instruction, ...]


class Assembler:
    """Collects instructions. Jumps go forward, to the next place of a label; None stands for the
    next instruction.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[int, int, str | None, str | None]] = []
        self._labels: dict[str, list[int]] = {}

    def label(self, name: str) -> None:
        """The next instruction has this name, as later ones may."""
        self._labels.setdefault(name, []).append(len(self._steps))

    def load(self, size: int, offset: int) -> None:
        """Have WORD, HALF or BYTE of the frame in the accumulator."""
        self._steps.append((size, offset, None, None))

    def load_length(self) -> None:
        """Have the frame's length in the accumulator."""
        self._steps.append((_LENGTH, 0, None, None))

    def keep_bits(self, mask: int) -> None:
        """Clear all others in the accumulator."""
        self._steps.append((_AND, mask, None, None))

    def branch(
        self, test: int, value: int, *, yes: str | None = None, no: str | None = None
    ) -> None:
        """Compare the accumulator with a value and go on at a label."""
        self._steps.append((test, value, yes, no))

    def jump(self, label: str) -> None:
        """Go on at a label, however far away it is."""
        self._steps.append((_JUMP, 0, label, None))

    def finish(self, verdict: int) -> None:
        """End with this verdict."""
        self._steps.append((_RETURN, verdict, None, None))

    def program(self) -> Program:
        """Everything, with labels resolved."""
        return tuple(self._resolved(at) for at in range(len(self._steps)))

    def _resolved(self, at: int) -> Instruction:
        code, k, yes, no = self._steps[at]
        if code == _JUMP:
            return Instruction(code, 0, 0, self._distance(at, yes))
        near = self._distance(at, yes), self._distance(at, no)
        assert max(near) <= _FARTHEST, (yes, no)
        return Instruction(code, *near, k)

    def _distance(self, at: int, label: str | None) -> int:
        if label is None:
            return 0
        return next(place for place in self._labels[label] if place > at) - at - 1


def as_bytecode(program: Program) -> str:
    """The program as `tc … bpf bytecode` takes it."""
    return ",".join([str(len(program)), *(" ".join(map(str, step)) for step in program)])
