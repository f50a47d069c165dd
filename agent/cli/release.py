"""`enclave-agent release`: releases made, looked at, and brought from elsewhere."""

from __future__ import annotations

import click

from agent.cli.release_build import build
from agent.cli.release_init import init
from agent.cli.release_pull import pull
from agent.cli.release_show import list_, show


@click.group()
def release() -> None:
    """Make releases, look at them, bring them here."""


for _command in (init, build, list_, show, pull):
    release.add_command(_command)
