"""`enclave-agent restore-host`: what the uninstaller runs, once no enclave runs any more."""

from __future__ import annotations

import asyncio

import click

from agent.cli.exits import Exit, Failure
from agent.cli.session import session


@click.command("restore-host", hidden=True)
def restore_host() -> None:
    """Put links, rules and sysctls back as they were before the agent."""
    from agent.cli.check_config import load
    from agent.daemon import parts
    from agent.errors import AgentError, describe

    config = load(session().config_path)
    try:
        asyncio.run(parts.restore_host(config))
    except AgentError as error:
        raise Failure(Exit.FAILED, describe(error)) from error
