"""What tenants' limits refused, as it is told by deployment."""

from __future__ import annotations

from agent.model.ids import DeploymentName
from agent.updates.engine.refusals import Refusals

ONE, TWO = DeploymentName("one"), DeploymentName("two")


def test_what_was_refused_before_the_agents_time_is_not_told() -> None:
    refusals = Refusals()
    refusals.take({"one": {"source_connections": 7}}, {"one": ONE})
    assert refusals.by_deployment == {}
    refusals.take({"one": {"source_connections": 9, "guest_flows": 1}}, {"one": ONE})
    assert refusals.by_deployment == {ONE: {"source_connections": 2, "guest_flows": 1}}


def test_an_address_that_passes_on_takes_no_refusals_along() -> None:
    refusals = Refusals()
    refusals.take({}, {})
    refusals.take({"10.0.0.2": {"guest_flows": 5}}, {"10.0.0.2": ONE})
    refusals.take({"10.0.0.2": {"guest_flows": 6}}, {})
    refusals.take({"10.0.0.2": {"guest_flows": 8}}, {"10.0.0.2": TWO})
    assert refusals.by_deployment == {ONE: {"guest_flows": 5}, TWO: {"guest_flows": 2}}


def test_a_data_plane_that_begins_anew_takes_nothing_away() -> None:
    refusals = Refusals()
    refusals.take({}, {})
    refusals.take({"10.0.0.2": {"guest_flows": 5}}, {"10.0.0.2": ONE})
    refusals.take({}, {"10.0.0.2": ONE})
    refusals.take({"10.0.0.2": {"guest_flows": 3}}, {"10.0.0.2": ONE})
    assert refusals.by_deployment == {ONE: {"guest_flows": 8}}


def test_guests_of_one_deployment_are_told_together_and_a_deleted_one_not_at_all() -> None:
    refusals = Refusals()
    refusals.take({}, {})
    said = {"10.0.0.2": {"guest_flows": 5}, "10.0.0.3": {"guest_flows": 1}}
    refusals.take(said, {"10.0.0.2": ONE, "10.0.0.3": ONE})
    assert refusals.by_deployment == {ONE: {"guest_flows": 6}}
    refusals.forget_others({TWO})
    assert refusals.by_deployment == {}
