"""Who is woken by what: news of one deployment's enclave are no other's."""

from __future__ import annotations

from agent.model.ids import DeploymentName
from agent.updates.engine.wakeups import Bells

ONE, TWO = DeploymentName("one"), DeploymentName("two")


def test_a_bell_is_one_deployments_and_a_stroke_is_for_all() -> None:
    bells = Bells()
    one, two = bells.of(ONE), bells.of(TWO)
    bells.of(ONE).ring()
    assert (one.count, two.count) == (1, 0)
    bells.ring()
    assert (one.count, two.count) == (2, 1)


def test_who_is_forgotten_is_woken_no_more_and_begins_anew() -> None:
    bells = Bells()
    old = bells.of(ONE)
    bells.forget(ONE)
    bells.forget(ONE)
    bells.ring()
    assert old.count == 0
    assert bells.of(ONE) is not old
