"""Where `release list`, `show` and `pull` look: a source, opened for one command."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from agent.cli.exits import Exit, Failure
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.releases.source import Source

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


def source_options(command: F) -> F:
    """`--source`, `--token-file` and `--ca-file`."""
    source = click.option(
        "--source",
        metavar="DIR|URL|github",
        help="Where releases are. [as configured: releases.source]",
    )
    token = click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="A token for github, which alone is sent it. [as configured]",
    )
    ca = click.option(
        "--ca-file",
        type=click.Path(path_type=Path, dir_okay=False, exists=True),
        help="What an https source is trusted by. [the system's certificates]",
    )
    return source(token(ca(command)))


class Opening:
    """Opens sources for one command; all are closed at its end."""

    def __init__(self, executor: Executor, token_file: Path | None, ca_file: Path | None) -> None:
        self.executor = executor
        self._token_file = token_file
        self._tls = ssl.create_default_context(cafile=str(ca_file)) if ca_file else None
        self._opened: list[Source] = []

    def open(self, text: str | None) -> Source:
        """By its text, or as configured. Raises Failure USAGE."""
        from agent.errors import describe
        from agent.releases.port import ReleaseSourceError
        from agent.releases.source import open_source

        text = text or self._configured()
        if text is None:
            told = "no source of releases is configured (releases.source): name one by --source"
            raise Failure(Exit.USAGE, told)
        try:
            source = open_source(text, self.executor, self._tls, self._token_file)
        except ReleaseSourceError as error:
            raise Failure(Exit.USAGE, f"--source: {describe(error)}") from None
        self._opened.append(source)
        return source

    def _configured(self) -> str | None:
        """As the agent's configuration has it; it is root's to read, and others have none."""
        from agent.cli.check_config import load

        path = session().config_path
        if path is None or not os.access(path, os.R_OK):
            return None
        releases = load(path).releases
        self._token_file = self._token_file or releases.github_token_file
        return releases.source

    async def close(self) -> None:
        """Close what was opened."""
        for source in self._opened:
            await source.close()


def with_sources(
    work: Callable[[Opening], Awaitable[T]], token_file: Path | None, ca_file: Path | None
) -> T:
    """Do the work on an event loop of its own; its errors become the command's."""

    async def whole() -> T:
        with ThreadPoolExecutor(2) as executor:
            opening = Opening(executor, token_file, ca_file)
            try:
                return await work(opening)
            finally:
                await opening.close()

    with told():
        return asyncio.run(whole())


@contextmanager
def told() -> Iterator[None]:
    """What releases suffer, as exit codes."""
    from agent.errors import AgentError, describe
    from agent.releases.build import TagTakenError
    from agent.releases.port import ReleaseError, ReleaseNotFoundError

    try:
        yield
    except ReleaseNotFoundError as error:
        raise Failure(Exit.UNKNOWN_NAME, describe(error)) from None
    except TagTakenError as error:
        raise Failure(Exit.REFUSED, describe(error)) from None
    except ReleaseError as error:
        raise Failure(Exit.USAGE, describe(error)) from None
    except (AgentError, OSError) as error:
        raise Failure(Exit.FAILED, describe(error)) from None


def named(text: str) -> tuple[str, str]:
    """(repo, tag) of `REPO@TAG`. Raises Failure USAGE."""
    from agent.model.ids import parse_repo, parse_tag

    repo, at, tag = text.rpartition("@")
    if not at:
        raise Failure(Exit.USAGE, f"'{text[:80]}': must be REPO@TAG, or OWNER/REPO@TAG")
    try:
        return parse_repo(repo), parse_tag(tag)
    except ValueError as error:
        raise Failure(Exit.USAGE, f"'{text[:80]}': {error}") from None
