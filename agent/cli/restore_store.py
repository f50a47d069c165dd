"""`enclave-agent restore-store`: the way back from a damaged store. The agent must be stopped."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from agent.cli.exits import Exit, Failure
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.store.restore import Restored

_SHOWN = 20


@click.command("restore-store")
@click.option(
    "--stop-unrecorded",
    is_flag=True,
    help="Restore nothing: have the VMs that a restored store does not know stopped at start.",
)
def restore_store(stop_unrecorded: bool) -> None:
    """Put the newest backup in the place of a damaged store."""
    from agent.cli.check_config import load
    from agent.errors import AgentError, describe
    from agent.host.clock import RealClock
    from agent.host.files import lock_exclusive
    from agent.store import restore
    from agent.store.sqlite import STORE_FILE

    state_dir = load(session().config_path).state_dir
    store = state_dir / STORE_FILE
    try:
        with lock_exclusive(state_dir / "agent.lock"):
            if stop_unrecorded:
                restore.stop_unrecorded(store)
                click.echo("VMs that the store does not know are stopped at the next start")
            else:
                _tell(restore.restore(store, RealClock().now))
    except AgentError as error:
        raise Failure(Exit.FAILED, describe(error), _mend(error.code)) from None


def _mend(code: str) -> tuple[str, ...]:
    return ("stop the agent first",) if code == "already_running" else ()


def _tell(done: Restored) -> None:
    from agent.cli.event_lines import line_of

    click.echo(f"restored {done.backup}, taken {done.taken_at:%Y-%m-%d %H:%M:%S} UTC")
    if done.broken is None:
        click.echo(f"its rows are whole, its chain of events holds to event {done.newest}")
    else:
        click.echo(f"its rows are whole; its chain of events is broken: {done.broken.reason}")
    if done.kept is not None:
        click.echo(f"the damaged store is kept as {done.kept}")
    click.echo(
        f"lost: whatever was recorded after that; events go on at {done.event.sequence}, so that "
        "no number is given twice"
    )
    for event in done.lost[:_SHOWN]:
        click.echo(f"  {line_of(msgspec.to_builtins(event))}")
    if len(done.lost) > _SHOWN:
        click.echo(f"  and {len(done.lost) - _SHOWN} more")
    if not done.lost:
        click.echo("  no event after it can be read in the damaged store")
    if done.unbacked is not None:
        click.echo(f"first make room: {done.unbacked}")
    click.echo("start the agent; `enclave-agent status` shows what it found (docs/operations.md)")
