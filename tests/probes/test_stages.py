"""How far a boot is, out of whatever a guest serves as its boot stages."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.probes.stages import Stages, read_stages

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["stages", "name", "status", "more"]), inner, max_size=4)
    ),
    max_leaves=20,
)


def stages(*words: str, **below: list[dict[str, Any]]) -> dict[str, Any]:
    """`name:status` each."""
    split = [word.split(":") for word in words]
    return {
        "stages": [
            {"name": name, "status": status, **({"stages": below[name]} if name in below else {})}
            for name, status in split
        ]
    }


@given(anything)
def test_any_document_gives_an_answer(document: Any) -> None:
    assert isinstance(read_stages(document if isinstance(document, dict) else None), Stages)


def test_the_first_stage_that_is_not_done_is_under_way() -> None:
    read = read_stages(stages("config:ok", "network:skipped", "identity:pending", "shim:pending"))
    assert (read.under_way, read.before) == ("identity", "network")
    assert read.finished == {("config",), ("network",)}


def test_a_boot_that_is_over_has_none_under_way() -> None:
    read = read_stages(stages("config:ok", "shim:warning"))
    assert (read.under_way, read.before) == (None, "shim")


def test_models_are_mounted_before_the_firewall_although_they_are_listed_after_it() -> None:
    read = read_stages(stages("registry-auth:ok", "firewall:pending", "models:pending"))
    assert (read.under_way, read.before) == ("models", "registry-auth")
    read = read_stages(stages("registry-auth:ok", "firewall:pending", "models:ok"))
    assert read.under_way == "firewall"


def test_the_stages_of_a_container_are_counted_too() -> None:
    web = {
        "name": "web",
        "status": "pending",
        "stages": [{"name": "pull", "status": "ok"}, {"name": "start", "status": "pending"}],
    }
    read = read_stages(stages("config:ok", "containers:pending", containers=[web]))
    assert read.finished == {("config",), ("containers", "web", "pull")}


def test_gpus_count_as_attested_only_by_an_ok() -> None:
    for status, attested in (("ok", True), ("skipped", False), ("pending", False)):
        assert read_stages(stages(f"gpu-attestation:{status}")).gpus_attested is attested
