"""Names completed by the shell, asked of the agent; an agent that does not answer completes none.

`enclave-agent completion bash` prints what the shell needs for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from agent.cli.exits import Failure
from agent.cli.session import CliSession

if TYPE_CHECKING:
    from agent.cli.client import Client

_PATIENCE_S = 2.0  # somebody holds the Tab key


class _Known(click.ParamType[str]):
    """A text, of which the agent knows those that there are."""

    def __init__(self, name: str, known: Callable[[Client], Sequence[str]]) -> None:
        self.name = name
        self._known = known

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        del param
        try:
            found = self._known(CliSession.of(ctx.find_root().params).client(_PATIENCE_S))
        except (Failure, click.ClickException, OSError):
            return []
        return [CompletionItem(one) for one in found if one.startswith(incomplete)]


def _deployments(client: Client) -> list[str]:
    from agent.cli.names import deployment_names

    return deployment_names(client)


def _gpus(client: Client) -> list[str]:
    """Whole, and without the domain, which hardly anybody types."""
    from agent.cli.names import device_bdfs

    return [one for bdf in device_bdfs(client) for one in (bdf, bdf.partition(":")[2])]


DEPLOYMENT = _Known("deployment", _deployments)
GPU = _Known("bdf", _gpus)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what a shell needs to complete verbs and names.

    For bash: eval "$(enclave-agent completion bash)"
    """
    from click.shell_completion import get_completion_class

    root = click.get_current_context().find_root()
    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(root.command, {}, "enclave-agent", "_ENCLAVE_AGENT_COMPLETE")
    click.echo(made.source())
