"""Leases over HTTP: made, read, given back, told twice."""

from __future__ import annotations

import pytest

DEMAND = {"memory_mib": 512, "vcpus": 1}
WANTED = {"demand": DEMAND, "ttl_s": 60}
KEY = {"Idempotency-Key": "once-1"}


async def made(api, **more) -> dict:
    answer = await api.ask("POST", "/v1/leases", json=WANTED | more)
    assert answer.status == 201, answer.text
    return answer.json


async def test_a_lease_is_made_read_and_given_back(api) -> None:
    lease = await made(api)
    assert lease["strategy"] == "fresh"
    assert (lease["memory_mib"], lease["vcpus"], lease["gpus"]) == (512, 1, [])
    path = f"/v1/leases/{lease['id']}"
    assert (await api.ask("GET", path)).json == lease
    given = await api.ask("DELETE", path)
    assert (given.status, given.text) == (204, "")
    for method in ("GET", "DELETE"):
        assert (await api.ask(method, path)).status == 404


async def test_a_lease_whose_time_is_up_is_gone_rather_than_unknown(api) -> None:
    path = f"/v1/leases/{(await made(api))['id']}"
    api.engine.clock.advance(60)
    for method in ("GET", "DELETE"):
        answer = await api.ask(method, path)
        assert (answer.status, answer.json["code"]) == (410, "lease_expired")


async def test_a_promise_that_cannot_be_made_is_refused_with_the_numbers(api) -> None:
    answer = await api.ask("POST", "/v1/leases", json=WANTED | {"demand": DEMAND | {"vcpus": 9}})
    assert answer.status == 409
    (reason,) = answer.json["reasons"]
    assert (reason["code"], reason["needed"], reason["available"]) == ("vcpus_insufficient", 9, 8)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ttl_s": 60}, "deployment"),
        ({"demand": DEMAND}, "ttl_s"),
        ({**WANTED, "ttl_s": 0}, "ttl_s"),
        ({**WANTED, "ttl_s": 86401}, "ttl_s"),
        ({**WANTED, "deployment": "web"}, "demand"),
        ({**WANTED, "staging": True}, "staging"),
    ],
)
async def test_every_wrong_field_of_a_lease_is_named(api, body: dict, field: str) -> None:
    answer = await api.ask("POST", "/v1/leases", json=body)
    assert (answer.status, answer.json["field"]) == (400, field)


async def test_the_same_request_told_twice_makes_one_lease(api) -> None:
    first = await api.ask("POST", "/v1/leases", json=WANTED, headers=KEY)
    again = await api.ask("POST", "/v1/leases", json=WANTED, headers=KEY)
    assert (again.status, again.text) == (201, first.text)
    other = await api.ask("POST", "/v1/leases", json=WANTED | {"ttl_s": 61}, headers=KEY)
    assert (other.status, other.json["code"]) == (422, "idempotency_key_reused")


async def test_it_does_so_too_after_the_agent_died_before_it_could_keep_the_answer(api) -> None:
    first = await api.ask("POST", "/v1/leases", json=WANTED, headers=KEY)
    api.answers.kept.clear()
    again = await api.ask("POST", "/v1/leases", json=WANTED, headers=KEY)
    assert (again.status, again.text) == (201, first.text)
    assert again.headers["Idempotent-Replayed"] == "true"
    api.answers.kept.clear()
    other = await api.ask("POST", "/v1/leases", json=WANTED | {"ttl_s": 61}, headers=KEY)
    assert other.status == 422


async def test_giving_back_told_twice_is_done_once(api) -> None:
    path = f"/v1/leases/{(await made(api))['id']}"
    for _ in range(2):
        assert (await api.ask("DELETE", path, headers=KEY)).status == 204


async def test_the_status_listener_tells_nothing_of_leases(api) -> None:
    lease = await made(api)
    assert (await api.ask_status("GET", f"/v1/leases/{lease['id']}")).status == 403
    assert (await api.ask_status("POST", "/v1/leases", json=WANTED)).status == 403
