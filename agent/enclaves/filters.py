"""Filters on links, read and written with `tc`: one of ours at each hook, always the first.

They are the kernel's (clsact, cls_bpf), apart from nftables: a flushed ruleset leaves them as they
are. A filter is replaced in one step; the link is never without one in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from agent.enclaves.network import NetworkError
from agent.enclaves.packet_program import Instruction, Program, as_bytecode
from agent.host.commands import CommandError, RunCommand, run_command

_PREFERENCE, _HANDLE = 1, 1  # the first place: what a filter of ours lets pass, no other is asked
NEEDS = (
    "the tool `tc` (package iproute2) and the kernel modules sch_ingress and cls_bpf "
    "(`modprobe cls_bpf`; on Ubuntu in the package linux-modules-extra)"
)


class Hook(NamedTuple):
    """Where a filter is: `ingress` is what comes in from a guest, `egress` what goes out to it."""

    link: str
    direction: str


class _Bytecode(msgspec.Struct, frozen=True):
    insns: tuple[dict[str, int], ...] = ()


class _Options(msgspec.Struct, frozen=True, rename="kebab"):
    handle: str = ""
    direct_action: bool = False
    bytecode: _Bytecode = _Bytecode()


class _Filter(msgspec.Struct, frozen=True):
    """One line of `tc -json filter show`."""

    pref: int = 0
    protocol: str = ""
    kind: str = ""
    options: _Options | None = None

    @property
    def program(self) -> Program | None:
        """Of ours; None of any other."""
        options = self.options
        here = (self.pref, self.protocol, self.kind) == (_PREFERENCE, "all", "bpf")
        if not here or options is None or int(options.handle or "0", 16) != _HANDLE:
            return None
        if not options.direct_action:
            return None
        return as_program(options.bytecode.insns)


class _Qdisc(msgspec.Struct, frozen=True):
    kind: str = ""
    dev: str = ""


def as_program(steps: Iterable[Mapping[str, int]]) -> Program:
    """From what `tc` prints."""
    return tuple(Instruction(one["code"], one["jt"], one["jf"], one["k"]) for one in steps)


def commands(wanted: Mapping[Hook, Program | None]) -> str:
    """What `tc -batch` is to be given, to have exactly this at each hook."""
    lines = [f"qdisc replace dev {link} clsact" for link in dict.fromkeys(h.link for h in wanted)]
    for (link, direction), program in wanted.items():
        where = f"dev {link} {direction} pref {_PREFERENCE}"
        if program is None:
            lines.append(f"filter delete {where}")
            continue
        filled = f'bpf bytecode "{as_bytecode(program)}" direct-action'
        lines.append(f"filter replace {where} handle {_HANDLE} protocol all {filled}")
    return "".join(f"{line}\n" for line in lines)


class Filters:
    """Each call is one or two runs of `tc`. Raises NetworkError with the tool's complaint."""

    def __init__(self, run: RunCommand = run_command) -> None:
        self._run = run

    async def differing(self, wanted: Mapping[Hook, Program | None]) -> list[Hook]:
        """Those at which something else is than is wanted. None: no filter of ours."""
        qdiscs = msgspec.json.decode(await self._tc(["-json", "qdisc", "show"]), type=list[_Qdisc])
        classified = {one.dev for one in qdiscs if one.kind == "clsact"}
        asked = [hook for hook in wanted if hook.link in classified]
        found: dict[Hook, Program | None] = dict.fromkeys(wanted)
        if asked:
            lines = "".join(f"filter show dev {link} {where}\n" for link, where in asked)
            printed = await self._tc(["-json", "-batch", "-"], lines)
            listings = [line for line in printed.splitlines() if line.strip()]
            for hook, listing in zip(asked, listings, strict=True):
                found[hook] = _ours(listing)
        return [hook for hook, program in wanted.items() if found[hook] != program]

    async def put(self, wanted: Mapping[Hook, Program | None]) -> None:
        """Have exactly this at each hook."""
        if wanted:
            await self._tc(["-batch", "-"], commands(wanted))

    async def _tc(self, words: list[str], stdin: str = "") -> bytes:
        try:
            done = await self._run(["tc", *words], stdin=stdin.encode())
        except CommandError as error:
            raise NetworkError(f"taps cannot be filtered without {NEEDS}") from error
        if done.status != 0:
            raise NetworkError(
                f"a tap cannot be filtered (tc: {done.complaint}): it needs {NEEDS}"
            )
        return done.stdout


def _ours(listing: bytes) -> Program | None:
    try:
        filters = msgspec.json.decode(listing, type=list[_Filter])
    except msgspec.MsgspecError as error:
        raise NetworkError("`tc filter show` printed what is not understood") from error
    return next((program for one in filters if (program := one.program) is not None), None)
