"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from agent.model.reasons import Strategy

F = TypeVar("F", bound=Callable[..., Any])

STRATEGIES = click.Choice([Strategy.BLUE_GREEN.value, Strategy.STOP_THEN_START.value])


def output(command: F) -> F:
    """`-o table|json`."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="For people, or for programs.",
    )(command)


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
