"""A question before what cannot be taken back: asked on a terminal, never of a script."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from agent.cli.exits import Exit, Failure
from agent.cli.screen import on_terminal
from agent.cli.text import safe


def ask_first(question: Callable[[], str | None], *, yes: bool) -> None:
    """Go on if it was said before, if nobody is there to ask, or if the answer is yes.

    `question` is made only where it is asked; None: there is nothing to ask about. Raises Failure
    for any other answer, the end of the input included: nothing was changed.
    """
    if yes or not (sys.stdin.isatty() and on_terminal()):
        return
    text = question()
    if text is None:
        return
    try:
        agreed = click.confirm(safe(text), err=True)
    except click.Abort:
        click.echo(err=True)
        agreed = False
    if not agreed:
        raise Failure(Exit.FAILED, "nothing was changed", ["without the question: --yes"])
