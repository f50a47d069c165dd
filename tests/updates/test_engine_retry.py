"""A retry asks again for all that the request asked for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from agent.capacity.supply import vm_memory_mib
from agent.model.ids import DeploymentName
from agent.model.reasons import Strategy
from agent.model.update import Step, Update, UpdateStatus
from agent.store.rows import decode, encode
from agent.updates.errors import RefusedError
from agent.updates.orders import Change
from simulator.instant_host import CALLER, InstantHost, Make
from simulator.rows import update as some_update

NAME = DeploymentName("web")
ONE_VM = vm_memory_mib(256)


def give(host: InstantHost, memory_mib: int) -> None:
    host.supply = msgspec.structs.replace(host.supply, memory_mib=memory_mib)


async def failed(host: InstantHost, **options: Any) -> Update:
    """An update that fails while it is prepared, for a reason that passes."""
    host.releases.broken.add("v2")
    update = await host.update(NAME, "v2", **options)
    host.releases.broken.clear()
    assert (update.status, update.step) == (UpdateStatus.FAILED, Step.PREPARE)
    return update


async def test_a_console_is_read_before_it_is_quoted(make: Make) -> None:
    """Else its last words might be those of some seconds ago."""
    host = await make()
    await host.deploy(NAME, "v1")
    fault = (await failed(host)).fault
    assert fault is not None
    assert fault.console_tail == "its last words"


async def test_blue_green_that_was_insisted_on_is_no_outage_when_retried(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    await failed(host, strategy=Strategy.BLUE_GREEN)
    give(host, ONE_VM)
    with pytest.raises(RefusedError) as refused:
        await host.engine.retry(NAME, CALLER)
    assert refused.value.code == "strategy_unavailable"
    give(host, 2 * ONE_VM)
    update = await host.finish(await host.engine.retry(NAME, CALLER))
    assert (update.strategy, update.status) == (Strategy.BLUE_GREEN, UpdateStatus.COMPLETED)


@pytest.mark.parametrize("cancelled", [True, False])
async def test_a_staged_stop_then_start_is_one_when_retried(make: Make, cancelled: bool) -> None:
    """With room for both and without."""
    for memory_mib in (ONE_VM, 8192):
        host = await make()
        give(host, memory_mib)
        await host.deploy(NAME, "v1")
        options = {"strategy": Strategy.STOP_THEN_START, "staging": True}
        if cancelled:
            waiting = await host.engine.update(NAME, Change(tag="v2", **options), CALLER)
            await host.until(NAME, lambda facts: facts.update.step is Step.ACCEPT)
            await host.engine.cancel(NAME, CALLER)
            assert (await host.finish(waiting)).status is UpdateStatus.CANCELLED
        else:
            await failed(host, **options)
        again = await host.engine.retry(NAME, CALLER)
        assert (again.strategy, again.staging) == (Strategy.STOP_THEN_START, True)
        await host.until(NAME, lambda facts: facts.update.step is Step.ACCEPT)
        await host.engine.accept(NAME, CALLER)
        assert (await host.finish(again)).status is UpdateStatus.COMPLETED


async def test_every_option_is_kept_through_any_number_of_retries(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    options = {"revert_after_switch": False, "restart_old_on_failure": True, "staging": True}
    await failed(host, strategy=Strategy.BLUE_GREEN, **options)
    host.releases.broken.add("v2")
    for _ in range(2):
        again = await host.finish(await host.engine.retry(NAME, CALLER))
        assert again.insisted is Strategy.BLUE_GREEN
        assert {name: getattr(again, name) for name in options} == options


async def test_what_nobody_insisted_on_is_chosen_anew(make: Make) -> None:
    host = await make()
    await host.deploy(NAME, "v1")
    assert (await failed(host)).strategy is Strategy.BLUE_GREEN
    give(host, ONE_VM)
    again = await host.finish(await host.engine.retry(NAME, CALLER))
    assert (again.strategy, again.status) == (Strategy.STOP_THEN_START, UpdateStatus.COMPLETED)


def test_a_row_of_before_reads_as_one_that_insists_on_nothing() -> None:
    fields = msgspec.json.decode(encode(some_update()))
    fields.pop("insisted", None)
    assert decode(msgspec.json.encode(fields), Update).insisted is None
