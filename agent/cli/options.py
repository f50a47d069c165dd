"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import click

from agent.model.reasons import Strategy

F = TypeVar("F", bound=Callable[..., Any])

STRATEGIES = click.Choice([Strategy.BLUE_GREEN.value, Strategy.STOP_THEN_START.value])


@dataclass(frozen=True)
class Output:
    """How an answer is wanted: `table`, `wide`, `json` or `jsonl`; tables with their headers."""

    form: str = "table"
    headers: bool = True

    @property
    def wide(self) -> bool:
        """Every column, as wide as it is."""
        return self.form == "wide"

    @property
    def for_programs(self) -> bool:
        """JSON, in one of its two forms."""
        return self.form in ("json", "jsonl")

    @property
    def by_line(self) -> bool:
        """A JSON value a line."""
        return self.form == "jsonl"


TABLE = Output()
TEXT = Output("text")


def output(command: F) -> F:
    """`-o table|wide|json|jsonl` and `--no-headers` of a verb that reads: it gets an Output."""

    @wraps(command)
    def with_output(*args: Any, output: str, headers: bool, **more: Any) -> Any:
        return command(*args, output=Output(output, headers), **more)

    form = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "wide", "json", "jsonl"]),
        default="table",
        show_default=True,
        help="For people, with every column, or for programs: at once, or a value a line.",
    )
    bare = click.option(
        "--no-headers", "headers", is_flag=True, default=True, flag_value=False, help="Rows alone."
    )
    return form(bare(with_output))  # type: ignore[return-value]


def result(command: F) -> F:
    """`-o text|json|jsonl` of a verb that changes something; it gets an Output."""

    @wraps(command)
    def with_output(*args: Any, output: str, **more: Any) -> Any:
        return command(*args, output=Output(output), **more)

    form = click.option(
        "-o",
        "--output",
        type=click.Choice(["text", "json", "jsonl"]),
        default="text",
        show_default=True,
        help="What it says of the change: for people, or the agent's answer for programs.",
    )
    return form(with_output)  # type: ignore[return-value]


def waiting(command: F) -> F:
    """`--wait` and `--timeout`."""
    wait = click.option("--wait", is_flag=True, help="Wait for the end, showing progress.")
    timeout = click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0, min_open=True),
        metavar="S",
        help="Stop waiting after so many seconds (exit code 6); the update goes on.",
    )
    return wait(timeout(command))


def values(command: F) -> F:
    """`--variable` and `--secret`."""
    variable = click.option(
        "--variable", "variables", multiple=True, metavar="K=V", help="A variable; repeatable."
    )
    secret = click.option(
        "--secret",
        "secrets",
        multiple=True,
        metavar="K=@FILE|K=-",
        help="A secret's value from a file or stdin; repeatable. One line end at its end is cut.",
    )
    return variable(secret(command))


def lease(command: F) -> F:
    """`--lease`."""
    return click.option("--lease", metavar="ID", help="Spend this promise of capacity.")(command)


def accept_moved_tag(command: F) -> F:
    """`--accept-moved-tag`."""
    return click.option(
        "--accept-moved-tag",
        is_flag=True,
        help="Take the contents of --tag though they are others than were taken before.",
    )(command)


def sure(command: F) -> F:
    """`--yes`: a question that a terminal is asked first is answered already."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask first.")(command)


def probes(command: F) -> F:
    """`--probe-path` and `--probe-host`."""
    path = click.option(
        "--probe-path",
        metavar="/PATH",
        help="Where the workload is asked whether it lives; '' for what its shim makes best.",
    )
    host = click.option(
        "--probe-host",
        metavar="NAME[:PORT]",
        help="The Host that it is asked by; '' for the domain, or else the guest's address.",
    )
    return path(host(command))
