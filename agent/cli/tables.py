"""Tables and pairs, so that what is printed can be copied.

A row is one line. What is an identifier (a name, a tag, an address with its port, a BDF) is shown
whole or not at all: on a terminal that is too narrow the least needed column takes its shorter
form, and then goes; a sentence is wrapped between words. What is no terminal has every column as
wide as it is, and so has `-o wide` anywhere. Nothing is ever folded inside a word: one that is
wider than the terminal is left to the terminal, which copies it as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderResult

Kind = Literal["whole", "prose"]
Form = str | Text
Cell = Form | tuple[Form, ...]  # the longest form first

_GAP = 2
_WORD = re.compile(r"\S+\s*")
_LEAST_PROSE = 24  # narrower than this a sentence is a column of single words


@dataclass(frozen=True)
class Look:
    """How the tables of one page are wanted. `width`: in cells; None: as wide as they are."""

    wide: bool = False
    headers: bool = True
    width: int | None = None


class Screen(Console):
    """A console that knows how its tables are wanted."""

    look: Look | None = None


@dataclass(frozen=True)
class Column:
    """One column. `need`: 0 is always there; the greatest goes first where there is no room.

    `prose`: sentences, wrapped between words; `whole`: all else. `wide`: only with `-o wide`.
    """

    name: str
    need: int = 0
    kind: Kind = "whole"
    wide: bool = False


def prose(name: str, need: int = 0) -> Column:
    """A column of sentences."""
    return Column(name, need, kind="prose")


@dataclass(frozen=True)
class _Sized:
    """A column as it is drawn: by its place, the level of its forms, and its width in cells."""

    at: int
    column: Column
    widths: tuple[int, ...]  # of each level of its forms; one level: it has no shorter form
    level: int = 0
    room: int | None = None  # of prose: what it is wrapped to

    @property
    def width(self) -> int:
        full = self.widths[self.level]
        return full if self.room is None else min(full, self.room)

    @property
    def least(self) -> int:
        full = self.widths[self.level]
        return min(full, max(_LEAST_PROSE, len(self.column.name))) if self._flexible else full

    @property
    def _flexible(self) -> bool:
        return self.column.kind == "prose"


class Table:
    """Rows under headers, without lines between them."""

    def __init__(self, *columns: Column | str) -> None:
        self._columns = [
            one if isinstance(one, Column) else Column(one, need=n)
            for n, one in enumerate(columns)
        ]
        self._rows: list[tuple[tuple[Text, ...], ...]] = []

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def add_row(self, *cells: Cell) -> None:
        """One cell for each column."""
        assert len(cells) == len(self._columns), "a cell for each column"
        self._rows.append(tuple(_forms(cell) for cell in cells))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        look = _look(console, options)
        chosen = layout(self._sized(wide=look.wide), None if look.wide else look.width)
        header = [Text(one.column.name, style="bold") for one in chosen]
        lines = [_joined(header, [one.width for one in chosen])] if look.headers else []
        for row in self._rows:
            lines += _lines_of(row, chosen)
        return _ending(lines)

    def _sized(self, *, wide: bool) -> list[_Sized]:
        found = []
        for at, column in enumerate(self._columns):
            if column.wide and not wide:
                continue
            levels = max((len(row[at]) for row in self._rows), default=1)
            widths = [
                max([cell_len(column.name), *(_at(row[at], level).cell_len for row in self._rows)])
                for level in range(levels)
            ]
            found.append(_Sized(at, column, tuple(widths)))
        return found


def layout(columns: Sequence[_Sized], width: int | None) -> list[_Sized]:
    """Those that are shown, sized to fit the width. Pure.

    The least needed gives way first: by a shorter form, then altogether. Keys never do, so that
    what is shown may be wider than the width.
    """
    shown = list(columns)
    while width is not None and _total(one.least for one in shown) > width:
        yielding = [one for one in shown if one.level + 1 < len(one.widths) or one.column.need]
        if not yielding:
            break
        least = max(yielding, key=lambda one: (one.column.need, one.at))
        at = shown.index(least)
        if least.level + 1 < len(least.widths):
            shown[at] = replace(least, level=least.level + 1)
        else:
            del shown[at]
    return shown if width is None else _with_room(shown, width)


def _with_room(shown: list[_Sized], width: int) -> list[_Sized]:
    """The sentences share what the others leave, each as much as it can use."""
    left = max(0, width - _total(one.least for one in shown))
    sized = []
    for one in shown:
        more = min(left, one.width - one.least)
        left -= more
        sized.append(replace(one, room=one.least + more) if one.least < one.width else one)
    return sized


def _total(widths: Iterable[int]) -> int:
    every = list(widths)
    return sum(every) + _GAP * max(0, len(every) - 1)


def _forms(cell: Cell) -> tuple[Text, ...]:
    forms = cell if isinstance(cell, tuple) else (cell,)
    return tuple(one if isinstance(one, Text) else Text(one) for one in forms)


def _at(forms: tuple[Text, ...], level: int) -> Text:
    """The form of that level; the shortest of a cell that has not so many."""
    return forms[min(level, len(forms) - 1)]


def _lines_of(row: tuple[tuple[Text, ...], ...], chosen: Sequence[_Sized]) -> Iterator[Text]:
    """One line, but for sentences that need more."""
    pieces: list[list[Text]] = []
    for one in chosen:
        text = _at(row[one.at], one.level)
        pieces.append([text] if one.room is None else _wrapped(text, one.room))
    for n in range(max(map(len, pieces), default=0)):
        cells = [piece[n] if n < len(piece) else Text() for piece in pieces]
        yield _joined(cells, [one.width for one in chosen])


def _wrapped(text: Text, width: int) -> list[Text]:
    """Lines of whole words; a word that is wider is whole on a line of its own."""
    plain, breaks = text.plain, []
    column = cell_len(plain) - cell_len(plain.lstrip())
    for word in _WORD.finditer(plain):
        if column and column + cell_len(word[0].rstrip()) > width and word.start():
            breaks.append(word.start())
            column = 0
        column += cell_len(word[0])
    lines = list(text.divide(breaks))
    for line in lines:
        line.rstrip()
    return lines


def _joined(cells: Sequence[Text], widths: Sequence[int]) -> Text:
    line = Text(no_wrap=True, overflow="ignore", end="")
    for n, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        line.append_text(cell)
        if n + 1 < len(cells):
            line.append(" " * (max(0, width - cell.cell_len) + _GAP))
    line.rstrip()
    return line


def _ending(lines: Iterable[Text]) -> RenderResult:
    for line in lines:
        line.end = "\n"
        yield line


def _look(console: Console, options: ConsoleOptions) -> Look:
    look = getattr(console, "look", None)
    return look if isinstance(look, Look) else Look(width=options.max_width)


class Pairs:
    """What, and its value: values begin in one column, and wrap between words there."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, Text, bool]] = []

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def add_row(self, name: str, value: Form, *, whole: bool = False) -> None:
        """`whole`: it is copied as one, and never wrapped."""
        self._rows.append((name, value if isinstance(value, Text) else Text(value), whole))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        look = _look(console, options)
        names = max((cell_len(name) for name, _, _ in self._rows), default=0)
        for name, value, whole in self._rows:
            room = None if look.width is None or whole else look.width - names - _GAP
            lines = [value] if room is None else _wrapped(value, max(room, 1))
            for n, line in enumerate(lines):
                label = Text(name if n == 0 else "", style="dim")
                joined = _joined([label, line], [names, line.cell_len])
                joined.end = "\n"
                yield joined


class Paragraph:
    """A sentence, or a line to be copied: wrapped between words, under its own beginning."""

    def __init__(self, text: Form, indent: int = 0, hanging: int = 0) -> None:
        self._text = text if isinstance(text, Text) else Text(text)
        self._indent = indent
        self._hanging = hanging

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        look = _look(console, options)
        room = None if look.width is None else max(1, look.width - self._indent - self._hanging)
        lines = [self._text] if room is None else _wrapped(self._text, room)
        for n, line in enumerate(lines):
            margin = self._indent + (self._hanging if n else 0)
            yield Text(" " * margin, no_wrap=True, overflow="ignore").append_text(line)
