from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.cli.doctor_outside import outside_line
from agent.config import Config, ProbesConfig
from tests.fakes.netns import ip, own_host


@pytest.fixture
def host() -> Iterator[None]:
    with own_host():
        yield


@pytest.mark.root
def test_the_place_outside_is_tried_and_nothing_of_it_is_left(host: None) -> None:
    before = ip("-br link")
    line = outside_line(Config())
    assert (line.what, line.state) == ("outside", "ok")
    assert ip("-br link") == before


@pytest.mark.root
def test_where_it_cannot_be_had_the_doctor_says_why_and_what_is_asked_instead(host: None) -> None:
    for network in ("172.16.0.0/12", "10.0.0.0/8", "192.168.0.0/16"):
        ip(f"route add blackhole {network}")
    line = outside_line(Config())
    assert (line.state, "no private /30 is free" in line.detail) == ("warn", True)
    assert "from this host itself" in line.detail


def test_who_may_make_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    line = outside_line(Config())
    assert (line.state, line.mend) == ("warn", "run as root")
    assert outside_line(Config(probes=ProbesConfig(outside="never"))).state == "ok"
