"""`enclave-agent images`: what is kept, and what may go."""

from __future__ import annotations

import datetime as dt
import json

from agent.releases.port import KeptImage

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # the fake engine's clock


def populate(agent) -> None:
    def kept(key: str, days: float, *, needed: bool = False) -> KeptImage:
        used_at = NOW - dt.timedelta(days=days)
        return KeptImage(key=key, bytes=5 << 20, used_at=used_at, needed=needed)

    old, served, new = kept("sha256-a", 40), kept("verity-b", 90, needed=True), kept("sha256-c", 1)
    agent.api.do(lambda engine: engine.kept.extend((old, served, new)))


def test_images_are_listed_with_what_needs_them(agent) -> None:
    populate(agent)
    result = agent.call("images")
    assert result.exit_code == 0
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert rows["sha256-a"] == ["5", "2025-11-22", "00:00:00Z", "40", "d", "ago", "no"]
    assert rows["verity-b"][-1] == "yes"
    assert "3 images, 15 MiB" in result.stdout
    told = json.loads(agent.call("images", "-o", "json").stdout)
    assert [one["key"] for one in told["images"]] == ["sha256-a", "verity-b", "sha256-c"]


def test_pruning_takes_what_is_old_enough_and_never_what_is_needed(agent) -> None:
    populate(agent)
    result = agent.call("images", "prune", "--unused-for", "30")
    assert result.stdout == "removed sha256-a\n1 image removed, 5 MiB freed\n"
    assert agent.call("images", "prune").stdout.splitlines()[0] == "removed sha256-c"
    assert agent.call("images", "prune").stdout == "0 images removed, 0 MiB freed\n"
