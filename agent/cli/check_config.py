"""`enclave-agent check-config`: the daemon's own reader; and whether what runs would pass."""

from __future__ import annotations

import os
from pathlib import Path

import click

from agent.cli.exits import Exit, Failure
from agent.config import Config
from agent.config_file import ConfigError, load_config


@click.command(name="check-config")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against-running",
    is_flag=True,
    help="Judge the evidence of what runs by this file and this version, too.",
)
def check_config(file: Path, against_running: bool) -> None:
    """Check a configuration file.

    With --against-running the running agent is asked for the evidence that it saw last of each
    enclave, and that is judged by this file and the defaults of this version, before either is put
    in place: exit code 1 where something that runs would not be admitted so.
    """
    try:
        config = load_config(file, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise click.exceptions.Exit(Exit.USAGE) from None
    click.echo(f"{file}: good")
    if against_running:
        from agent.cli.against_running import tell_running

        if not tell_running(config):
            raise click.exceptions.Exit(Exit.FAILED)


def load(path: Path | None) -> Config:
    """The configuration, or the end of the command with every problem of it."""
    try:
        return load_config(path, os.environ)
    except ConfigError as error:
        where = str(path) if path is not None else "the environment"
        raise Failure(
            Exit.USAGE, f"the configuration is wrong ({where})", error.problems
        ) from None
