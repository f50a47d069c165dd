"""What NVML says, asked of a process that may hang, crash, or be sent away at any time.

Invariants: a look returns within its deadlines, whatever the driver does; at most one NVML process
lives; inside `released` there is none, so that nothing of ours holds a GPU while it is unbound.
The process lives only while the nvidia driver has a GPU: it sees no others. A GPU about which a
call hangs, or that is refused, rests (`resting.py`) while the others are asked as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence

from agent.host.clock import Clock
from agent.inventory.nvml.frames import (
    Answer,
    Failed,
    Find,
    Look,
    Looked,
    Open,
    Opened,
    Refused,
    Watch,
)
from agent.inventory.nvml.process import CHILD, NvmlEndedError, NvmlProcess, NvmlStuckError
from agent.inventory.nvml.resting import Resting
from agent.inventory.nvml.values import NvmlEvent, NvmlGpu, NvmlLook, Trouble
from agent.model.clock import Instant
from agent.model.ids import Bdf

_OPEN_S = 30.0
_ATTACH_S = 30.0  # the first use of a GPU after boot may load firmware into it
_LOOK_S = 5.0
_BACKOFF_S, _BACKOFF_AT_MOST_S = 5.0, 300.0

NOTHING = NvmlLook()
_SENT_AWAY = Trouble(code="nvml_released", detail="a GPU is being bound", expected=True)
_HUNG = Trouble(code="nvml_hung", detail="a call of the NVIDIA driver hangs")
_HANGS_AT_MOST = 2  # in a row; then it is the driver that hangs, and the rest need not be asked


class NvmlProbe:
    """Looks, one after another, by one task; `released` may be entered by many at once."""

    def __init__(
        self,
        library: str,
        clock: Clock,
        *,
        on_event: Callable[[NvmlEvent], None],
        command: Sequence[str] = CHILD,
        open_s: float = _OPEN_S,
        attach_s: float = _ATTACH_S,
        look_s: float = _LOOK_S,
    ) -> None:
        self._argv = (*command, library)
        self._clock = clock
        self._on_event = on_event
        self._open_s = open_s
        self._attach_s = attach_s
        self._look_s = look_s
        self._lock = asyncio.Lock()
        self._holds = 0
        self._process: NvmlProcess | None = None
        self._opened: Opened | None = None
        self._found: set[Bdf] = set()  # by the process
        self._watching = False
        self._resting = Resting()
        self._asked_for: frozenset[Bdf] = frozenset()
        self._failures = 0
        self._not_before: Instant | None = None
        self._trouble: Trouble | None = None

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._process.pid if self._process else None

    async def look(self, gpus: frozenset[Bdf]) -> NvmlLook:
        """What NVML says now; `gpus` are those that the nvidia driver has.

        Never raises for the driver's sake: what is wrong is in the look. After a failure the same
        is said again without asking, until the backoff has passed.
        """
        async with self._lock:
            if self._holds:
                return self._nothing(_SENT_AWAY)
            try:
                if not gpus:
                    await self._drop()
                    self._well()
                    return NOTHING
                if self._waits(gpus):
                    return self._nothing(self._trouble)
                self._asked_for = gpus
                return await self._ask_all()
            except (NvmlEndedError, NvmlStuckError) as error:
                trouble = Trouble(code=error.code, detail=str(error))
            except TimeoutError:
                trouble = _HUNG
            except asyncio.CancelledError:
                self._opened = None  # its answer would be taken for that of the next question
                raise
            return await self._failed(trouble)

    def _waits(self, gpus: frozenset[Bdf]) -> bool:
        """Whether it failed a moment ago, and would again: the driver has what it had then."""
        if gpus != self._asked_for:
            self._well()
            self._opened = None
            self._resting.keep_only(gpus)
        return self._not_before is not None and not self._clock.now().reached(self._not_before)

    async def _ask_all(self) -> NvmlLook:
        turn = self._resting.turn(self._asked_for, self._clock.now())
        if not turn and self._resting.hangs:
            await self._drop()
            return self._nothing(_HUNG)
        if any(map(self._resting.needs_new_process, turn)):
            self._opened = None
        process, opened = await self._open()
        gpus: list[NvmlGpu] = []
        hangs = 0
        for bdf in turn:
            if hangs >= _HANGS_AT_MOST:
                self._resting.add(bdf, self._clock.now())
                continue
            if process.ended:
                process, opened = await self._open()
            if isinstance(opened, Failed):
                break
            try:
                gpu = await self._ask_about(process, bdf)
            except TimeoutError:
                hangs += 1
                self._resting.add(bdf, self._clock.now())
                await self._drop()
                continue
            hangs = 0
            gpus += [gpu] if gpu is not None else []
        if isinstance(opened, Failed):
            return await self._failed(opened.trouble)
        if hangs and not gpus:
            return self._nothing(_HUNG)
        self._well()
        await self._watch()
        return NvmlLook(
            gpus=tuple(sorted(gpus, key=lambda gpu: gpu.bdf)),
            silent=self._resting.silent(),
            driver_version=opened.driver_version,
            cc_mode=opened.cc_mode,
        )

    async def _ask_about(self, process: NvmlProcess, bdf: Bdf) -> NvmlGpu | None:
        """None for one that is refused, which then rests. Raises TimeoutError if a call hangs."""
        if bdf not in self._found:
            answer: Answer = await process.ask(Find(bdf=bdf), self._attach_s)
            if isinstance(answer, Refused):
                self._resting.add(bdf, self._clock.now(), error=answer.error)
                return None
            self._found.add(bdf)
        answer = await process.ask(Look(bdf=bdf), self._look_s)
        if not isinstance(answer, Looked):
            raise NvmlEndedError("the NVML process answered another question")
        self._resting.remove(bdf)
        return answer.gpu

    async def _watch(self) -> None:
        """Have the process tell events, once it has found something to tell of."""
        if self._process is not None and self._found and not self._watching:
            self._watching = True
            await self._process.ask(Watch(), self._look_s)

    def _nothing(self, trouble: Trouble | None) -> NvmlLook:
        return NvmlLook(trouble=trouble, silent=self._resting.silent())

    async def _open(self) -> tuple[NvmlProcess, Opened | Failed]:
        """The process that is there, or a new one: NVML never sees a GPU that came later."""
        process, opened = self._process, self._opened
        if process and opened and not process.ended:
            return process, opened
        await self._drop()
        process = self._process = await NvmlProcess.start(self._argv, self._on_event)
        if self._holds:  # while it was being started
            process.kill()
        answer = await process.ask(Open(), self._open_s)
        if isinstance(answer, Opened):
            self._opened = answer
            return process, answer
        if isinstance(answer, Failed):
            return process, answer
        raise NvmlEndedError("the NVML process answered another question")

    def _well(self) -> None:
        self._failures, self._not_before, self._trouble = 0, None, None

    async def _failed(self, trouble: Trouble) -> NvmlLook:
        if self._holds:
            return self._nothing(_SENT_AWAY)
        try:
            await self._drop()
        except NvmlStuckError as error:
            trouble = Trouble(code=error.code, detail=str(error))
        wait_s = min(_BACKOFF_S * 2**self._failures, _BACKOFF_AT_MOST_S)
        self._failures = min(self._failures + 1, 10)
        self._not_before = self._clock.now().plus(wait_s)
        self._trouble = trouble
        return self._nothing(trouble)

    async def _drop(self) -> None:
        """No process any more. Raises NvmlStuckError, and then keeps it to be waited for again."""
        if self._process is None:
            return
        await self._process.close()
        self._process, self._opened = None, None
        self._found.clear()
        self._watching = False

    @contextlib.asynccontextmanager
    async def released(self) -> AsyncIterator[None]:
        """Send NVML away: inside, its process has ended and none is started.

        A look that is under way is cut off, also one that hangs. Raises NvmlStuckError if the
        process does not end, before anything else was done: then no driver may be unbound.
        """
        self._holds += 1
        try:
            if self._process is not None:
                self._process.kill()
            async with self._lock:
                await self._drop()
            yield
        finally:
            self._holds -= 1

    async def close(self) -> None:
        """For good."""
        self._holds += 1
        if self._process is not None:
            self._process.kill()
        with contextlib.suppress(NvmlStuckError):
            async with self._lock:
                await self._drop()
