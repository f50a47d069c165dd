"""The stories of the crash matrix: what is asked of the daemon, and when it is over."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from tests.fakes.daemon_process import Answer, Daemon, keyed

_HELLO = "/v1/deployments/hello"
_CURRENT = f"{_HELLO}/updates/current"

Do = Callable[[Daemon], Awaitable[Any]]
Ask = Callable[[Daemon, str], Awaitable[Answer]]
Seen = Callable[[dict[str, Any] | None], bool]


@dataclass(frozen=True)
class Story:
    """`prepare` brings about what the request needs; `asked` tells whether it was recorded.

    `ask` makes the request, with a key. `begins` an update: then it can be told again for ever.
    """

    name: str
    prepare: Do
    ask: Ask
    asked: Seen
    over: Seen
    begins: bool = True


async def running(daemon: Daemon) -> dict[str, Any]:
    """The deployment, serving, with no update under way."""
    seen = await daemon.deployment()
    if seen is None:
        assert (await daemon.deploy(tag="v1")).status == 202
        await daemon.over()
    elif not seen["enclaves"]:
        assert (await daemon.send("POST", f"{_HELLO}/start")).status == 202
        await daemon.over()
    found = await daemon.until(lambda d: d is not None and d["status"] == "running")
    assert found is not None
    return found


async def absent(daemon: Daemon) -> None:
    if await daemon.deployment() is not None:
        assert (await daemon.send("DELETE", _HELLO)).status == 202
        await daemon.until(lambda d: d is None)


async def never_fetched(daemon: Daemon) -> None:
    """Nothing of it, nor of its release, is on the host."""
    await absent(daemon)
    daemon.stop()
    shutil.rmtree(daemon.state / "cache", ignore_errors=True)
    await daemon.up()


async def stopped(daemon: Daemon) -> None:
    await running(daemon)
    assert (await daemon.send("POST", f"{_HELLO}/stop")).status == 202
    await daemon.until(lambda d: d is not None and not d["enclaves"])


async def booting(daemon: Daemon, **options: Any) -> None:
    """An update that would take for ever."""
    await running(daemon)
    assert (await daemon.update(tag="slow", **options)).status == 202
    await daemon.step("boot")


async def booting_after_stop(daemon: Daemon) -> None:
    await booting(daemon, strategy="stop_then_start")


async def staged(daemon: Daemon) -> None:
    seen = await running(daemon)
    assert (await daemon.update(tag=other(seen), staging=True)).status == 202
    await daemon.step("accept")


def other(seen: dict[str, Any] | None) -> str:
    return "v2" if seen is not None and seen["tag"] == "v1" else "v1"


def updating(**options: Any) -> Ask:
    tags: dict[str, str] = {}  # the same request has the same tag, also when told again

    async def ask(daemon: Daemon, key: str) -> Answer:
        if key not in tags:
            tags[key] = other(await daemon.deployment())
        return await daemon.update(**({"tag": tags[key]} | options), key=key)

    return ask


def posting(path: str, method: str = "POST") -> Ask:
    async def ask(daemon: Daemon, key: str) -> Answer:
        return await daemon.send(method, path, headers=keyed(key))

    return ask


async def deploying(daemon: Daemon, key: str) -> Answer:
    return await daemon.deploy(tag="v1", key=key)


def finished(seen: dict[str, Any] | None) -> bool:
    return seen is not None and seen["update"]["finished_at"] is not None


def new_update(seen: dict[str, Any] | None) -> bool:
    """Told by the newest update's id; `tell` puts the one before the request there."""
    return seen is not None and seen["update"]["id"] != seen["update_before"]


def cancelling(seen: dict[str, Any] | None) -> bool:
    return seen is not None and seen["update"]["status"] in ("cancelled", "failed")


def accepting(seen: dict[str, Any] | None) -> bool:
    return seen is not None and seen["update"]["step"] != "accept"


STORIES = [
    Story("fresh", never_fetched, deploying, lambda d: d is not None, finished),
    Story("blue_green", running, updating(), new_update, finished),
    Story("stop_then_start", running, updating(strategy="stop_then_start"), new_update, finished),
    Story("failing", running, updating(tag="exited"), new_update, finished),
    Story(
        "failing_after_stop",
        running,
        updating(tag="exited", strategy="stop_then_start", restart_old_on_failure=True),
        new_update,
        lambda d: finished(d) and d is not None and d["status"] == "running",
    ),
    Story(
        "secret",
        running,
        updating(tag="secret", secrets={"API_KEY": "value"}),
        new_update,
        finished,
    ),
    Story("cancel", booting, posting(f"{_CURRENT}/cancel"), cancelling, finished, begins=False),
    Story(
        "cancel_after_stop",
        booting_after_stop,
        posting(f"{_CURRENT}/cancel"),
        cancelling,
        finished,
        begins=False,
    ),
    Story("accept", staged, posting(f"{_CURRENT}/accept"), accepting, finished, begins=False),
    Story(
        "stop",
        running,
        posting(f"{_HELLO}/stop"),
        lambda d: d is not None and d["status"] == "stopped",
        lambda d: d is not None and not d["enclaves"],
        begins=False,
    ),
    Story("start", stopped, posting(f"{_HELLO}/start"), new_update, finished),
    Story(
        "delete",
        running,
        posting(_HELLO, "DELETE"),
        lambda d: d is None or d["status"] == "deleting",
        lambda d: d is None,
        begins=False,
    ),
]
