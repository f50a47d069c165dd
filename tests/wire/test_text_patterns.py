"""The patterns that the schema shows and the parsers that decide say the same."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.model import ids
from agent.model.resources import Listen
from agent.wire import text

CASES: list[tuple[str, Callable[[str], object]]] = [
    (text.DEPLOYMENT_PATTERN, ids.parse_deployment_name),
    (text.TAG_PATTERN, ids.parse_tag),
    (text.REPO_PATTERN, ids.parse_repo),
    (text.VARIABLE_PATTERN, ids.parse_variable_name),
    (text.LISTEN_PATTERN, Listen.parse),
]


@pytest.mark.parametrize(
    ("path", "good"),
    [
        ("/", True),
        ("/health", True),
        ("/api/v1/health/", True),
        ("/.well-known/of-mine", True),
        ("/ready?full=1&x=%20", True),
        ("/a.b-c_d~e", True),
        ("", False),
        ("health", False),
        ("/a//b", False),
        ("/a/./b", False),
        ("/..", False),
        ("/a?b#c", False),
        ("/ä", False),
    ],
)
def test_a_probe_path_is_absolute_literal_and_plain(path: str, good: bool) -> None:
    assert bool(re.fullmatch(text.PROBE_PATH_PATTERN, path)) is good


@pytest.mark.parametrize("host", ["a", "API.example.com", "10.0.0.1", "a-b.c:8443"])
def test_a_probe_host_is_a_name_with_or_without_a_port(host: str) -> None:
    assert re.fullmatch(text.PROBE_HOST_PATTERN, host)


@pytest.mark.parametrize(("pattern", "parse"), CASES)
@given(data=st.data())
def test_what_a_pattern_allows_the_parser_takes(
    pattern: str, parse: Callable[[str], object], data: st.DataObject
) -> None:
    parse(data.draw(st.from_regex(pattern, fullmatch=True)).removesuffix("\n"))


@pytest.mark.parametrize(("pattern", "parse"), CASES[:4])
@given(word=st.text(st.sampled_from("ab0Z._-+/ ,\n"), max_size=12))
def test_a_name_that_the_parser_takes_matches_its_pattern(
    pattern: str, parse: Callable[[str], object], word: str
) -> None:
    try:
        parse(word)
    except ValueError:
        assert not re.fullmatch(pattern, word)
    else:
        assert re.fullmatch(pattern, word)


@given(address=st.ip_addresses(), port=st.integers(1, 65535))
def test_every_address_as_python_prints_it_matches_the_listen_pattern(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    host = f"[{address}]" if address.version == 6 else str(address)
    assert re.fullmatch(text.LISTEN_PATTERN, f"{host}:{port}")


@pytest.mark.parametrize(
    "listen",
    ["127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:080", "256.0.0.1:1", "[::1:1", "::1:80", "a:1"],
)
def test_no_impossible_listener_matches_the_pattern(listen: str) -> None:
    assert not re.fullmatch(text.LISTEN_PATTERN, listen)
