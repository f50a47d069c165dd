"""Waiting for an update to end, whatever happens to the agent meanwhile.

An agent that goes away (it is being upgraded, it was killed) is waited for: its updates go on when
it is back. Only when it stays away does the wait end as not reachable.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from agent.cli.client import Client, segment
from agent.cli.exits import Exit, Failure
from agent.cli.failure import headline, what_is_left, words
from agent.cli.options import TEXT, Output
from agent.cli.progress import Display, Lines, Picture
from agent.cli.runs import what_runs
from agent.cli.screen import on_terminal, say, show_json
from agent.cli.text import duration, safe_lines
from agent.model.reasons import Strategy
from agent.model.update import Step, UpdateStatus
from agent.wire.answers import Updates
from agent.wire.views import DeploymentView, UpdateView

AWAY_S = 30.0
_EVERY_S = 0.25
_ENDED = frozenset({UpdateStatus.COMPLETED, UpdateStatus.FAILED, UpdateStatus.CANCELLED})


def follow_up(
    client: Client,
    update: UpdateView,
    *,
    wait: bool,
    timeout_s: float | None,
    output: Output = TEXT,
    done: str | None = None,
) -> None:
    """What every verb that begins or steers an update does then: wait for its end, or say how to.

    `done`: what to say of an update that was not begun by it.
    """
    for warning in update.warnings if done is None else ():
        click.echo(f"warning: {safe_lines(warning)}", err=True)
    if wait:
        if done is not None and not output.for_programs:
            say(done)
        wait_for_update(client, update, timeout_s, output)
    elif output.for_programs:
        show_json(update, one_line=output.by_line)
    else:
        say(done or _admitted(update))
        if done is None:
            watch = f"enclave-agent update status {update.deployment} --wait"
            say(f"watch it: {watch}", err=True)


def _admitted(update: UpdateView) -> str:
    return (
        f"{update.deployment}: update {update.id} to {update.tag} admitted ({update.strategy}, "
        f"revision {update.revision})"
    )


def wait_for_update(
    client: Client, update: UpdateView, timeout_s: float | None, output: Output = TEXT
) -> None:
    """Until it has ended, or waits to be accepted. Failure unless that is what was wanted.

    For programs the update as it ended is on stdout, and the progress, if anywhere, on stderr.
    """
    for_programs = output.for_programs
    display: Display = Picture() if on_terminal() and not for_programs else Lines(err=for_programs)
    try:
        last, deployment = _watch(client, update, timeout_s, display)
    except KeyboardInterrupt:
        click.echo(_goes_on(update), err=True)
        raise
    finally:
        display.close()
    if for_programs:
        show_json(last, one_line=output.by_line)
    _conclude(last, deployment, quiet=for_programs)


def ended(update: UpdateView) -> bool:
    """Whether there is nothing more to wait for; a staged update waits for a person."""
    return update.finished_at is not None and update.status in _ENDED


def _watch(
    client: Client, update: UpdateView, timeout_s: float | None, display: Display
) -> tuple[UpdateView, DeploymentView]:
    began = time.monotonic()
    away_since: float | None = None
    while True:
        elapsed_s = time.monotonic() - began
        try:
            update, deployment = _look(client, update)
            away_since = None
            display.show(update, deployment, elapsed_s)
            if ended(update) or update.step is Step.ACCEPT:
                return update, deployment
        except Failure as failure:
            away_since = _bear(failure, away_since)
            display.say("the agent is away; its updates go on when it is back", elapsed_s)
        if timeout_s is not None and elapsed_s >= timeout_s:
            raise Failure(
                Exit.TIMED_OUT,
                f"{update.deployment}: still {update.status}, {update.step}, after "
                f"{duration(elapsed_s)}",
                [_goes_on(update)],
            )
        time.sleep(_EVERY_S)


def _goes_on(update: UpdateView) -> str:
    return f"the update goes on: enclave-agent update status {update.deployment} --wait"


def _bear(failure: Failure, away_since: float | None) -> float:
    """Since when the agent is away; raises what is not its absence, or lasts too long."""
    if failure.exit_code != Exit.UNREACHABLE:
        raise failure
    now = time.monotonic()
    if away_since is not None and now - away_since > AWAY_S:
        raise failure
    return now if away_since is None else away_since


def _look(client: Client, update: UpdateView) -> tuple[UpdateView, DeploymentView]:
    """This update as it is now, also when a newer one has begun."""
    path = f"/v1/deployments/{segment(update.deployment)}"
    try:
        deployment = client.read(path, DeploymentView)
        if deployment.update is not None and deployment.update.id == update.id:
            return deployment.update, deployment
        for one in client.read(f"{path}/updates", Updates).updates:
            if one.id == update.id:
                return one, deployment
    except Failure as failure:
        if failure.exit_code != Exit.UNKNOWN_NAME:
            raise
    raise Failure(Exit.FAILED, f"{update.deployment} was deleted meanwhile")


def _conclude(update: UpdateView, deployment: DeploymentView, *, quiet: bool) -> None:
    name = update.deployment
    match update.status:
        case UpdateStatus.COMPLETED:
            told = f"{name} is on {update.tag}, revision {update.revision}{_cost(update)}"
        case UpdateStatus.FAILED:
            raise failure_of_update(update)
        case UpdateStatus.CANCELLED:
            told = f"{name}: the update to {update.tag} was cancelled"
            raise Failure(Exit.FAILED, told, what_is_left(update))
        case _:
            told = (
                f"{name}: {update.tag} is prepared and waits: enclave-agent update accept {name}, "
                f"or: enclave-agent update cancel {name}"
            )
    if not quiet:
        for line in what_runs(update, deployment):
            say(line)
        say(told)


def _cost(update: UpdateView) -> str:
    """What clients felt of it; of a first deployment they could feel nothing."""
    if update.strategy is Strategy.FRESH:
        return ""
    felt = f"downtime {duration(update.downtime_s)}" if update.downtime_s else "no downtime"
    reset = update.reset_connections
    return f": {felt}, {reset} connections reset" if reset else f": {felt}"


def failure_of_update(update: UpdateView) -> Failure:
    """In the words of what failed, with what still serves, what to type, and the console's end."""
    fault = update.error
    lines = [words(fault)] if fault is not None else []
    lines += what_is_left(update)
    if fault is not None and fault.console_tail:
        lines.append("console:")
        lines += [f"  {line}" for line in safe_lines(fault.console_tail).splitlines()]
    return Failure(Exit.FAILED, headline(update), lines)


def wait_until(
    client: Client,
    name: str,
    done: Callable[[DeploymentView | None], bool],
    timeout_s: float | None,
) -> DeploymentView | None:
    """Until the deployment (None: it is gone) is as wanted; returns it."""
    began = time.monotonic()
    while not done(found := _deployment(client, name)):
        if timeout_s is not None and time.monotonic() - began >= timeout_s:
            raise Failure(Exit.TIMED_OUT, f"{name}: not yet, after {duration(timeout_s)}")
        time.sleep(_EVERY_S)
    return found


def _deployment(client: Client, name: str) -> DeploymentView | None:
    try:
        return client.read(f"/v1/deployments/{segment(name)}", DeploymentView)
    except Failure as failure:
        if failure.exit_code != Exit.UNKNOWN_NAME:
            raise
        return None
