from __future__ import annotations

from agent.host.network_news import NetworkNews, NetworkProblem
from agent.host.pace import Pace
from agent.model.event import EventDraft

PROBLEM = NetworkProblem(code="tap_lost", severity="error", detail="gone", mend="relaunch")
REPAIR = EventDraft(kind="network", from_="changed", to="repaired", reason="it was set down")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_problem_is_an_event_when_it_comes_and_when_it_goes() -> None:
    news = NetworkNews(Clock())
    seen = news.changed.count
    news.show("links", {"tap:x": PROBLEM})
    assert news.problems == {"tap:x": PROBLEM}
    assert news.changed.count > seen
    assert [(one.to, one.reason) for one in news.take()] == [("tap_lost", "gone")]
    seen = news.changed.count
    news.show("links", {"tap:x": PROBLEM})
    assert news.changed.count == seen
    assert news.take() == []
    news.show("rules", {})
    assert news.problems == {"tap:x": PROBLEM}
    news.show("links", {})
    assert news.problems == {}
    assert [(one.from_, one.to) for one in news.take()] == [("tap_lost", "mended")]


def test_a_problem_whose_words_change_is_shown_anew_and_is_no_other_event() -> None:
    news = NetworkNews(Clock())
    news.show("links", {"x": PROBLEM})
    news.take()
    other = NetworkProblem(code="tap_lost", severity="error", detail="gone again", mend="relaunch")
    seen = news.changed.count
    news.show("links", {"x": other})
    assert news.problems["x"] == other
    assert news.changed.count > seen
    assert news.take() == []


def test_repairs_without_end_are_counted_and_told_so_often_a_minute() -> None:
    clock = Clock()
    news = NetworkNews(clock)
    for _ in range(100):
        news.repaired("link", REPAIR)
    assert news.repairs["link"] == 100
    assert len(news.take()) == 30
    clock.now = 61.0
    news.repaired("link", REPAIR)
    (told,) = news.take()
    assert told.reason == "it was set down (and 70 more within a minute)"
    news.repaired("link", REPAIR)
    assert news.take() == [REPAIR]


def test_repairs_in_a_row_wait_longer_but_never_two_seconds() -> None:
    clock = Clock()
    clock.now = 100.0
    pace = Pace(clock)
    waits = [pace.after_repair() for _ in range(20)]
    assert waits[:10] == [0.0] * 10
    assert waits[10:14] == [0.25, 0.5, 0.75, 1.0]
    assert max(waits) == 1.0
    clock.now += 5.0
    assert pace.after_repair() == 0.0
