"""Where a redirect of a source may lead."""

from __future__ import annotations

import socket
from collections.abc import Iterable

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from agent.releases.reach import RedirectResolver, scope_of

LOOPBACK = ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "2002:7f00:1::")
LINK_LOCAL = ("169.254.169.254", "fe80::1", "fe80::1%eth0", "64:ff9b::a9fe:a9fe")
ELSEWHERE = ("192.0.2.7", "2001:db8::1", "10.0.0.1", "releases.example", "")


@pytest.mark.parametrize(
    ("address", "scope"),
    [
        *((one, "loopback") for one in LOOPBACK),
        *((one, "link-local") for one in LINK_LOCAL),
        *((one, None) for one in ELSEWHERE),
    ],
)
def test_what_leads_back_here(address: str, scope: str | None) -> None:
    assert scope_of(address) == scope


class Names(AbstractResolver):
    """Resolves as it is told."""

    def __init__(self, **names: Iterable[str]) -> None:
        self._names = {name.replace("_", "."): list(found) for name, found in names.items()}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=one, port=port, family=family, proto=0, flags=0)
            for one in self._names[host]
        ]

    async def close(self) -> None: ...


def resolver(source: str, **names: Iterable[str]) -> RedirectResolver:
    made = RedirectResolver(source)
    made._inner = Names(**names)  # type: ignore[assignment]
    return made


async def hosts(made: RedirectResolver, name: str) -> list[str]:
    return [one["host"] for one in await made.resolve(name, 443)]


async def test_a_name_that_resolves_to_this_host_is_refused_and_others_keep_their_addresses() -> (
    None
):
    made = resolver(
        "source.example",
        source_example=["192.0.2.1"],
        evil_example=["127.0.0.1", "fe80::1"],
        mixed_example=["169.254.169.254", "192.0.2.9"],
    )
    assert await hosts(made, "source.example") == ["192.0.2.1"]
    assert await hosts(made, "mixed.example") == ["192.0.2.9"]
    with pytest.raises(OSError, match="this host itself"):
        await made.resolve("evil.example", 443)
    assert made.forbids("127.0.0.1")
    assert made.forbids("169.254.169.254")
    assert not made.forbids("192.0.2.9")


async def test_a_source_on_the_loopback_may_stay_there_and_goes_nowhere_else_of_the_kind() -> None:
    made = resolver("mirror.local", mirror_local=["127.0.0.1"], other_local=["127.0.0.2"])
    assert made.forbids("127.0.0.2")  # not known yet
    await made.resolve("mirror.local", 443)
    assert await hosts(made, "other.local") == ["127.0.0.2"]
    assert made.forbids("169.254.169.254")
    assert not resolver("127.0.0.1").forbids("::1")
