"""`enclave-agent check-config`: the same reader as the daemon's, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import click

from agent.cli.exits import Exit, Failure
from agent.config import Config
from agent.config_file import ConfigError, load_config


@click.command(name="check-config")
@click.argument("file", type=click.Path(path_type=Path))
def check_config(file: Path) -> None:
    """Check a configuration file."""
    try:
        load_config(file, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise click.exceptions.Exit(Exit.USAGE) from None
    click.echo(f"{file}: good")


def load(path: Path | None) -> Config:
    """The configuration, or the end of the command with every problem of it."""
    try:
        return load_config(path, os.environ)
    except ConfigError as error:
        where = str(path) if path is not None else "the environment"
        raise Failure(
            Exit.USAGE, f"the configuration is wrong ({where})", error.problems
        ) from None
