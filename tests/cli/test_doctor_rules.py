from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from agent.cli.doctor_rules import rules_line
from agent.config import Config, NetworkConfig, NetworkMode, TrafficConfig, TrafficMode
from tests.fakes.netns import own_host

DROPS = "add table ip fw; add chain ip fw f { type filter hook forward priority 0; policy drop; }"


@pytest.fixture
def dropping() -> Iterator[None]:
    with own_host():
        subprocess.run(["nft", "-f", "-"], input=DROPS, text=True, check=True)
        yield


@pytest.mark.root
def test_the_doctor_names_who_drops_guests_traffic_and_the_mend(dropping: None) -> None:
    line = rules_line(Config())
    assert (line.what, line.state) == ("forwarding", "warn")
    assert "table ip fw, chain f, by its policy" in line.detail
    assert "nft insert rule ip fw f iifname enclave0 accept" in line.mend
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    assert rules_line(Config()).state == "ok"


@pytest.mark.root
@pytest.mark.parametrize(
    "config",
    [
        Config(network=NetworkConfig(mode=NetworkMode.USER)),
        Config(traffic=TrafficConfig(mode=TrafficMode.HAPROXY)),
    ],
)
def test_where_nothing_is_forwarded_their_rules_do_not_matter(
    dropping: None, config: Config
) -> None:
    assert rules_line(config).state == "ok"
