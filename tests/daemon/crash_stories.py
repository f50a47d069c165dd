"""The stories of the crash matrix: what is asked of a daemon, or befalls it, and when it is over.

A request is made by the name of its route, so that the matrix can tell which verbs it covers.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.api.routes import ROUTES
from tests.fakes.daemon_process import Answer, Daemon, keyed
from tests.fakes.host_truth import end_vm, last_told, recorded, vms_in


@dataclass(frozen=True)
class Scene:
    """A host as an onlooker sees it. `kept`: how many there are of what a story is about.

    `told`: the sequence of the last event of that kind.
    """

    deployment: Any
    host: Any
    gpus: Any
    kept: int = 0
    told: int = 0

    @property
    def update(self) -> Any:
        return self.deployment["update"] if self.deployment else None

    @property
    def enclaves(self) -> list[Any]:
        return self.deployment["enclaves"] if self.deployment else []

    @property
    def finished(self) -> bool:
        return self.update is not None and self.update["finished_at"] is not None

    @property
    def runs(self) -> bool:
        return self.deployment is not None and self.deployment["status"] == "running"


async def look(daemon: Daemon) -> Scene:
    shown = (await daemon.get("/status")).body
    (deployment,) = shown["deployments"] or [None]
    return Scene(deployment, shown["host"], shown["gpus"])


async def look_at_images(daemon: Daemon) -> Scene:
    kept = (await daemon.get("/v1/images")).body["images"]
    return replace(await look(daemon), kept=len(kept))


async def look_at_leases(daemon: Daemon) -> Scene:
    """Nothing lists them to others than those who hold one."""
    rows = await recorded(daemon.state)
    return replace(await look(daemon), kept=len(rows.leases))


async def look_at_recoveries(daemon: Daemon) -> Scene:
    """Only an event tells that one was begun."""
    told = await last_told(daemon.state, "gpu", "recovering")
    return replace(await look(daemon), told=told)


@dataclass(frozen=True)
class World:
    """What the daemons of a story are like: sections of the configuration, a host with GPUs."""

    name: str
    sections: Mapping[str, Any]
    profile: str | None = None


PLAIN = World("plain", {})
SOAKS_A_WHILE = World("soaks a while", {"update": {"soak_s": 2}})
SOAKS_LONG = World("soaks long", {"update": {"soak_s": 600}})
GPUS = 2  # few: each device has its own points
WITH_GPUS = World(
    "with GPUs",
    {"inventory": {"interval_s": 0.2}, "host": {"gpu_group_sizes": [1, GPUS]}},
    "2xh100-pcie",
)

Do = Callable[[Daemon], Awaitable[Any]]
Ask = Callable[[Daemon, str], Awaitable[Answer]]
Seen = Callable[[Scene, Scene], bool]


async def nothing(_: Daemon) -> None: ...


@dataclass(frozen=True)
class Story:
    """`prepare` brings about what the request needs; `ask` makes it, with a key.

    `asked` tells by the scene before and the scene now whether it was recorded, `over` by the same
    two whether all of it is done; `after` ends what would go on for ever. `begins` an update: then
    it can be told again for ever. `verb`: the name of the request's route; "": no request.
    """

    name: str
    prepare: Do
    verb: str
    ask: Ask
    asked: Seen
    over: Seen
    begins: bool = True
    after: Do = nothing
    look: Callable[[Daemon], Awaitable[Scene]] = look
    world: World = PLAIN


# --- what comes before ---------------------------------------------------------------------------


_PAIRS = (("v1", "v2"), ("gpu1", "gpu2"), ("gpus1", "gpus2"))
_OTHERS = dict(_PAIRS) | {second: first for first, second in _PAIRS}


async def running(daemon: Daemon, tag: str = "v1") -> Scene:
    """The deployment, serving, with no update under way."""
    scene = await look(daemon)
    if scene.deployment is None:
        told = await daemon.deploy(tag=tag)
        assert told.status == 202, told
        await daemon.over()
    elif not scene.enclaves:
        assert (await request(daemon, "start")).status == 202
        await daemon.over()
    await daemon.until(lambda d: d is not None and d["status"] == "running")
    return await look(daemon)


async def running_of(daemon: Daemon, tag: str) -> None:
    """Of that tag, or of its other one."""
    scene = await look(daemon)
    if scene.deployment and scene.deployment["tag"] not in (tag, _OTHERS[tag]):
        await absent(daemon)
    await running(daemon, tag)


async def absent(daemon: Daemon) -> None:
    if await daemon.deployment() is not None:
        assert (await request(daemon, "delete")).status == 202
        await daemon.until(lambda d: d is None)


async def running_anew(daemon: Daemon) -> None:
    """One whose VMs have never died."""
    await absent(daemon)
    await running(daemon)


async def never_fetched(daemon: Daemon) -> None:
    """Nothing of it, nor of its release, is on the host."""
    await absent(daemon)
    daemon.stop()
    shutil.rmtree(daemon.state / "cache", ignore_errors=True)
    await daemon.up()


async def stopped(daemon: Daemon) -> None:
    await running(daemon)
    assert (await request(daemon, "stop")).status == 202
    await daemon.until(lambda d: d is not None and not d["enclaves"])


async def booting(daemon: Daemon, **options: Any) -> None:
    """An update that would take for ever."""
    await running(daemon)
    assert (await daemon.update(tag="slow", **options)).status == 202
    await daemon.step("boot")


async def booting_after_stop(daemon: Daemon) -> None:
    await booting(daemon, strategy="stop_then_start")


async def booting_beside_one_that_never_died(daemon: Daemon) -> None:
    await absent(daemon)
    await booting(daemon)


async def staged(daemon: Daemon, **options: Any) -> None:
    scene = await running(daemon)
    assert (await daemon.update(tag=other(scene), staging=True, **options)).status == 202
    await daemon.step("accept")


async def staged_before_the_stop(daemon: Daemon) -> None:
    await staged(daemon, strategy="stop_then_start")


async def updated(daemon: Daemon) -> None:
    """The second one serves, after the first: so that there is one to go back to.

    What served only after it, and was gone back from, is none.
    """
    scene = await running(daemon)
    if scene.deployment["tag"] != "v2":
        assert (await daemon.update(tag="v2")).status == 202
        await daemon.over()
    await daemon.until(lambda d: d is not None and any(one["default"] for one in d["rollback"]))


async def soaking(daemon: Daemon) -> None:
    """The old version is still warm."""
    scene = await running(daemon)
    assert (await daemon.update(tag=other(scene))).status == 202
    await daemon.step("soak")


async def failed(daemon: Daemon) -> None:
    scene = await running(daemon)
    if scene.update["status"] != "failed":
        assert (await daemon.update(tag="exited")).status == 202
        await daemon.over()


async def with_a_secret(daemon: Daemon) -> None:
    """It has one, and it is not stale."""
    scene = await running(daemon)
    told = await request(daemon, "set_secrets", {"API_KEY": "old"})
    assert told.status == 200, told
    if scene.deployment["tag"] != "secret" or told.body["stale_secrets"]:
        assert (await daemon.update(tag="secret")).status == 202
        assert (await daemon.over())["status"] == "completed"


async def forgiven(daemon: Daemon) -> None:
    """As after a release by hand: all those deaths are not to spend a GPU's resets of the hour."""
    for gpu in (await daemon.get("/v1/inventory")).body["gpus"]:
        if gpu["upkeep"]["resets"] * 2 > gpu["upkeep"]["resets_allowed"]:
            assert (await request(daemon, "release_gpu", bdf=gpu["bdf"])).status == 200


async def with_gpus(daemon: Daemon) -> None:
    """One GPU taken, the others clean."""
    await forgiven(daemon)
    await running_of(daemon, "gpu1")
    await until(daemon, lambda scene: scene.gpus["free"] == GPUS - 1)


async def with_all_gpus(daemon: Daemon) -> None:
    await forgiven(daemon)
    await running_of(daemon, "gpus1")
    await until(daemon, lambda scene: scene.gpus["in_use"] == GPUS)


async def without_gpus(daemon: Daemon) -> None:
    await forgiven(daemon)
    await absent(daemon)
    await until(daemon, lambda scene: scene.gpus["free"] == GPUS)


async def until(daemon: Daemon, holds: Callable[[Scene], bool]) -> None:
    while not holds(await look(daemon)):
        assert not daemon.ended
        await asyncio.sleep(0.05)


async def admitting(daemon: Daemon) -> None:
    assert (await request(daemon, "undrain")).status == 200


async def draining(daemon: Daemon) -> None:
    assert (await request(daemon, "drain")).status == 200


async def with_an_image_too_many(daemon: Daemon) -> None:
    await running(daemon)
    await absent(daemon)


async def called_off(daemon: Daemon) -> None:
    assert (await request(daemon, "cancel")).status == 202
    await daemon.over()
    await daemon.until(lambda d: d is not None and d["status"] == "running")


# --- requests ------------------------------------------------------------------------------------

_PATHS = {route.name: (route.method, route.path) for route in ROUTES}


async def request(
    daemon: Daemon, verb: str, body: Any = None, key: str | None = None, **names: str
) -> Answer:
    """Of deployment hello, by the name of its route."""
    method, path = _PATHS[verb]
    where = path.format(name="hello", **names)
    return await daemon.send(method, where, body, headers=keyed(key))


def asking(verb: str, body: Any = None) -> Ask:
    async def ask(daemon: Daemon, key: str) -> Answer:
        return await request(daemon, verb, body, key)

    return ask


def other(scene: Scene) -> str:
    """A tag of the same kind as the one that runs."""
    return _OTHERS.get(scene.deployment["tag"] if scene.deployment else "", "v1")


def updating(**options: Any) -> Ask:
    tags: dict[str, str] = {}  # the same request has the same tag, also when told again

    async def ask(daemon: Daemon, key: str) -> Answer:
        if key not in tags:
            tags[key] = other(await look(daemon))
        return await request(daemon, "update", {"tag": tags[key]} | options, key)

    return ask


def deploying(tag: str) -> Ask:
    async def ask(daemon: Daemon, key: str) -> Answer:
        return await daemon.deploy(tag=tag, key=key)

    return ask


async def recovering(daemon: Daemon, key: str) -> Answer:
    """Of the first GPU there is."""
    first = (await daemon.get("/v1/inventory")).body["gpus"][0]["bdf"]
    return await request(daemon, "recover_gpu", None, key, bdf=first)


class Leases:
    """A lease of two vCPUs in each place: what `prepare` and `ask` must know of one another."""

    def __init__(self) -> None:
        self._held: dict[Path, str] = {}

    async def make(self, daemon: Daemon, key: str | None = None) -> Answer:
        demand = {"memory_mib": 64, "vcpus": 2}
        told = await request(daemon, "create_lease", {"demand": demand, "ttl_s": 3600}, key)
        if told.status == 201:
            self._held[daemon.home] = told.body["id"]
        return told

    async def give_back(self, daemon: Daemon, key: str | None = None) -> Answer:
        return await request(daemon, "delete_lease", None, key, id=self._held[daemon.home])

    async def none(self, daemon: Daemon) -> None:
        if daemon.home in self._held:
            told = await self.give_back(daemon)
            assert told.status in (204, 404, 410), told

    async def one(self, daemon: Daemon) -> None:
        await self.none(daemon)
        assert (await self.make(daemon)).status == 201


LEASES = Leases()


def killing(who: Callable[[Scene], Any]) -> Ask:
    """What befalls a host: one VM killed -9. Told again: it is the same one."""
    victims: dict[str, str] = {}

    async def ask(daemon: Daemon, key: str) -> Answer:
        if key not in victims:
            pid = who(await look(daemon))["pid"]
            victims[key] = next(uuid for uuid, pids in vms_in(daemon).items() if pid in pids)
        there = end_vm(daemon, victims[key])
        return Answer(202 if there else 404, None, {})

    return ask


def active(scene: Scene) -> Any:
    slot = scene.deployment["active_slot"]
    return next(row for row in scene.enclaves if row["slot"] == slot)


# --- how it can be told that it was recorded, and that it is over --------------------------------


def new_update(before: Scene, now: Scene) -> bool:
    """Told by the newest update's id."""
    old = before.update["id"] if before.update else None
    return now.update is not None and now.update["id"] != old


def new_update_over(before: Scene, now: Scene) -> bool:
    return new_update(before, now) and now.finished


def cancelling(_: Scene, now: Scene) -> bool:
    return now.update is not None and now.update["status"] in ("cancelled", "failed")


def there(_: Scene, now: Scene) -> bool:
    return now.deployment is not None


def finished(_: Scene, now: Scene) -> bool:
    return now.finished


def accepted(_: Scene, now: Scene) -> bool:
    return bool(now.update["step"] != "accept")


def deleting(_: Scene, now: Scene) -> bool:
    return now.deployment is None or now.deployment["status"] == "deleting"


def drains(_: Scene, now: Scene) -> bool:
    return bool(now.host["draining"])


def admits(_: Scene, now: Scene) -> bool:
    return not now.host["draining"]


def stale(_: Scene, now: Scene) -> bool:
    return bool(now.deployment["stale_secrets"] == ["API_KEY"])


def another_vm(before: Scene, now: Scene) -> bool:
    """In the place of the one that was active."""
    pid = active(before)["pid"]
    return pid not in [row["pid"] for row in now.enclaves]


def serves_again(before: Scene, now: Scene) -> bool:
    if not another_vm(before, now) or not now.enclaves:
        return False
    return bool(active(now)["healthy"]) and now.deployment["status"] in ("running", "updating")


def more_kept(before: Scene, now: Scene) -> bool:
    return now.kept > before.kept


def fewer_kept(before: Scene, now: Scene) -> bool:
    return now.kept < before.kept


STORIES = [
    Story(
        "fresh",
        never_fetched,
        "deploy",
        deploying("v1"),
        there,
        finished,
    ),
    Story("blue_green", running, "update", updating(), new_update, new_update_over),
    Story(
        "stop_then_start",
        running,
        "update",
        updating(strategy="stop_then_start"),
        new_update,
        new_update_over,
    ),
    Story("failing", running, "update", updating(tag="exited"), new_update, new_update_over),
    Story(
        "failing_after_stop",
        running,
        "update",
        updating(tag="exited", strategy="stop_then_start", restart_old_on_failure=True),
        new_update,
        lambda before, now: new_update_over(before, now) and now.runs,
    ),
    Story(
        "secret",
        running,
        "update",
        updating(tag="secret", secrets={"API_KEY": "value"}),
        new_update,
        new_update_over,
    ),
    Story(
        "cancel",
        booting,
        "cancel",
        asking("cancel"),
        cancelling,
        finished,
        begins=False,
    ),
    Story(
        "cancel_after_stop",
        booting_after_stop,
        "cancel",
        asking("cancel"),
        cancelling,
        finished,
        begins=False,
    ),
    Story(
        "accept",
        staged,
        "accept",
        asking("accept"),
        accepted,
        finished,
        begins=False,
    ),
    Story(
        "accept_the_stop",
        staged_before_the_stop,
        "accept",
        asking("accept"),
        accepted,
        finished,
        begins=False,
    ),
    Story(
        "cancel_staged",
        staged,
        "cancel",
        asking("cancel"),
        cancelling,
        finished,
        begins=False,
    ),
    Story(
        "stop",
        running,
        "stop",
        asking("stop"),
        lambda _, now: now.deployment["status"] == "stopped",
        lambda _, now: not now.enclaves,
        begins=False,
    ),
    Story("start", stopped, "start", asking("start"), new_update, new_update_over),
    Story(
        "delete",
        running,
        "delete",
        asking("delete"),
        deleting,
        lambda _, now: now.deployment is None,
        begins=False,
    ),
    Story("rollback", updated, "rollback", asking("rollback", {}), new_update, new_update_over),
    Story("retry", failed, "retry", asking("retry"), new_update, new_update_over),
    Story(
        "new_secrets",
        with_a_secret,
        "set_secrets",
        asking("set_secrets", {"API_KEY": "new"}),
        stale,
        stale,
        begins=False,
    ),
    Story(
        "drain",
        admitting,
        "drain",
        asking("drain"),
        drains,
        drains,
        begins=False,
        after=admitting,
    ),
    Story(
        "undrain",
        draining,
        "undrain",
        asking("undrain"),
        admits,
        admits,
        begins=False,
    ),
    Story(
        "lease",
        LEASES.none,
        "create_lease",
        LEASES.make,
        more_kept,
        more_kept,
        begins=False,
        look=look_at_leases,
    ),
    Story(
        "give_back",
        LEASES.one,
        "delete_lease",
        LEASES.give_back,
        fewer_kept,
        fewer_kept,
        begins=False,
        look=look_at_leases,
    ),
    Story(
        "prune",
        with_an_image_too_many,
        "prune_images",
        asking("prune_images", {"unused_for_s": 0}),
        fewer_kept,
        lambda _, now: now.kept == 0,
        begins=False,
        look=look_at_images,
    ),
    Story(
        "relaunch",
        running_anew,
        "",
        killing(active),
        another_vm,
        serves_again,
        begins=False,
    ),
    Story(
        "old_one_dies_in_the_boot",
        booting_beside_one_that_never_died,
        "",
        killing(active),
        another_vm,
        serves_again,
        begins=False,
        after=called_off,
    ),
    Story(
        "warm_rollback",
        soaking,
        "rollback",
        asking("rollback", {}),
        new_update,
        new_update_over,
        world=SOAKS_A_WHILE,
    ),
    Story(
        "revert",
        soaking,
        "",
        killing(active),
        lambda _, now: now.update["status"] == "failed",
        lambda _, now: now.finished and now.runs,
        begins=False,
        world=SOAKS_LONG,
    ),
    Story(
        "gpu_fresh",
        without_gpus,
        "deploy",
        deploying("gpu1"),
        there,
        lambda _, now: now.finished and now.gpus["free"] == GPUS - 1,
        world=WITH_GPUS,
    ),
    Story(
        "gpu_blue_green",
        with_gpus,
        "update",
        updating(),
        new_update,
        lambda before, now: new_update_over(before, now) and now.gpus["free"] == GPUS - 1,
        world=WITH_GPUS,
    ),
    Story(
        "gpu_delete",
        with_gpus,
        "delete",
        asking("delete"),
        deleting,
        lambda _, now: now.deployment is None and now.gpus["free"] == GPUS,
        begins=False,
        world=WITH_GPUS,
    ),
    Story(
        "gpu_recover",
        without_gpus,
        "recover_gpu",
        recovering,
        lambda before, now: now.told > before.told,
        lambda before, now: now.told > before.told and now.gpus["free"] == GPUS,
        begins=False,
        look=look_at_recoveries,
        world=WITH_GPUS,
    ),
    Story(
        "gpus_stop_then_start",
        with_all_gpus,
        "update",
        updating(),
        new_update,
        lambda before, now: new_update_over(before, now) and now.gpus["in_use"] == GPUS,
        world=WITH_GPUS,
    ),
    Story(
        "gpus_old_one_back",
        with_all_gpus,
        "update",
        updating(tag="gpus_exited", restart_old_on_failure=True),
        new_update,
        lambda before, now: now.finished and now.runs and now.gpus["in_use"] == GPUS,
        world=WITH_GPUS,
    ),
]
