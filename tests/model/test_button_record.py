"""What a press teaches of an image, and for how long."""

from __future__ import annotations

import datetime as dt

from agent.model.ids import DeploymentName
from agent.model.power_button import RETRY_AFTER, ButtonRecord, Press

NOW = dt.datetime(2026, 5, 1, tzinfo=dt.UTC)
WEB, OTHER = DeploymentName("web"), DeploymentName("other")


def test_nothing_known_is_asked() -> None:
    assert not ButtonRecord().is_deaf(WEB, NOW)


def test_one_ignored_press_is_enough_for_every_deployment_of_the_version() -> None:
    known = ButtonRecord().after(Press.IGNORED, WEB, NOW)
    assert known.is_deaf(WEB, NOW)
    assert known.is_deaf(OTHER, NOW)


def test_a_press_that_says_nothing_teaches_nothing() -> None:
    known = ButtonRecord().after(Press.IGNORED, WEB, NOW)
    for press in (Press.NONE, Press.UNCLEAR):
        assert ButtonRecord().after(press, WEB, NOW) == ButtonRecord()
        assert known.after(press, WEB, NOW) == known


def test_it_fades_so_that_the_button_is_tried_again() -> None:
    known = ButtonRecord().after(Press.IGNORED, WEB, NOW)
    assert known.is_deaf(WEB, NOW + RETRY_AFTER - dt.timedelta(seconds=1))
    assert not known.is_deaf(WEB, NOW + RETRY_AFTER)
    again = known.after(Press.IGNORED, WEB, NOW + RETRY_AFTER)
    assert again.is_deaf(WEB, NOW + RETRY_AFTER)


def test_one_that_is_heard_acquits_the_version() -> None:
    known = ButtonRecord().after(Press.IGNORED, WEB, NOW).after(Press.HEARD, OTHER, NOW)
    assert not known.is_deaf(OTHER, NOW)
    assert known.is_deaf(WEB, NOW)  # its own guests were not heard yet


def test_of_a_version_that_hears_only_the_deployment_that_ignores_is_remembered() -> None:
    known = ButtonRecord().after(Press.HEARD, OTHER, NOW).after(Press.IGNORED, WEB, NOW)
    assert known.is_deaf(WEB, NOW)
    assert not known.is_deaf(OTHER, NOW)
    assert not known.after(Press.HEARD, WEB, NOW).is_deaf(WEB, NOW)


def test_the_same_again_is_no_news() -> None:
    known = ButtonRecord().after(Press.HEARD, WEB, NOW)
    assert known.after(Press.HEARD, OTHER, NOW) is known


def test_names_of_long_ago_are_dropped() -> None:
    known = ButtonRecord().after(Press.IGNORED, WEB, NOW)
    later = known.after(Press.IGNORED, OTHER, NOW + RETRY_AFTER)
    assert set(later.ignoring) == {OTHER}
