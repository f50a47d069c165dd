"""The life of the daemon process: from the configuration to READY=1, and back."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.api.listeners import (
    Listener,
    inherited,
    local_listener,
    rpc_socket,
    tcp_listener,
)
from agent.api.names import names_of_this_host
from agent.api.roles import Role
from agent.api.server import ApiServer, Rpc
from agent.api.surface import Surface
from agent.config import SIMULATED, Config, Tee
from agent.config_file import ConfigError, load_config
from agent.daemon import earlier_config
from agent.daemon.answers import StoredAnswers
from agent.daemon.cage import settle_cage
from agent.daemon.choices import Choices, choose
from agent.daemon.doctor import Doctor
from agent.daemon.egress import EgressReporter, settle_egress
from agent.daemon.link import keep_trust, link
from agent.daemon.logs import set_up
from agent.daemon.parts import Assembly, build, make_simulated_chain
from agent.daemon.store_keeper import StoreKeeper
from agent.errors import AgentError, describe
from agent.host.allocator import give_memory_back
from agent.host.clock import RealClock
from agent.host.files import (
    lock_exclusive,
    make_private_directory,
    remove_scratch,
    write_atomic,
)
from agent.host.identity import derive_host_id
from agent.host.liveness import Liveness
from agent.host.notify import Notifier
from agent.model.ids import HostId
from agent.model.resources import Listen
from agent.store.damaged import DamagedStore
from agent.store.port import Store, StoreDamagedError
from agent.store.sqlite import STORE_FILE, SqliteStore
from agent.updates.engine.commands import UpdateEngine
from agent.updates.snapshot.snapshot import Resolved

log = logging.getLogger(__name__)


_BEAT_S = 10.0
Join = Callable[[Config, Choices, RealClock, Store, HostId], Assembly]


@dataclass(frozen=True, slots=True)
class _Serving:
    """What runs. Without a keeper the store is damaged, and nothing of it is decided on."""

    assembly: Assembly
    keeper: StoreKeeper | None
    egress: EgressReporter


def main(config_path: Path | None, join: Join = build) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code.

    2: the configuration cannot be, whatever the host is like; the unit does not try it again. 1:
    it cannot run now; the next start may find mended what is in the way.

    `join` builds the parts: whoever watches or replaces one does it there.
    """
    try:
        config = load_config(config_path, os.environ)
    except ConfigError as error:
        for line in error.problems:
            sys.stderr.write(f"{line}\n")
        return 2
    set_up(config.log)
    give_memory_back()
    try:
        asyncio.run(_run(config, join, Doctor(config_path)))
    except AgentError as error:
        words = {"code": error.code, "error": describe(error)}
        log.error("cannot run", extra=words)  # noqa: TRY400 - said to a person, no trace
        return 1
    return 0


async def _run(config: Config, join: Join, doctor: Doctor) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    notifier = Notifier.from_environment(os.environ, os.getpid())
    async with _serving(config, join, doctor) as serving:
        told = "adopted and reconciled" if serving.keeper else "the store is damaged"
        notifier.ready(told)
        _settle_memory()
        log.info("ready")
        async with asyncio.TaskGroup() as tasks:
            loops = [tasks.create_task(_beat(notifier, serving.assembly.runtime.liveness))]
            if serving.keeper is not None:
                loops.append(tasks.create_task(_show_accel(serving.assembly)))
                loops.append(tasks.create_task(serving.keeper.run()))
                loops.append(tasks.create_task(serving.egress.run()))
            await stop.wait()
            for loop_task in loops:
                loop_task.cancel()
        notifier.stopping("enclaves and the data plane go on")
        log.info("stopping; enclaves and the data plane go on")


def _settle_memory() -> None:
    """What is there by now stays: the collector need not walk all of it again and again.

    The second time it learns how little is left, and so how soon the next walk is worth while.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


async def _beat(notifier: Notifier, liveness: Liveness) -> None:
    """Tell the service manager that the loops progress, and nothing while one does not."""
    told: tuple[str, ...] = ()
    while True:
        late = liveness.late()
        if late != told:
            log.log(
                logging.ERROR if late else logging.INFO,
                "loops late" if late else "loops progress",
                extra={"loops": ", ".join(late)},
            )
            told = late
        if not late:
            notifier.watchdog()
        await asyncio.sleep(notifier.watchdog_interval_s or _BEAT_S)


async def _show_accel(assembly: Assembly) -> None:
    """READY never waits for the proof that KVM runs a guest; readers see when it is known."""
    seen = assembly.fleet.changed.count
    while assembly.fleet.accel_verdict is None:
        seen = await assembly.fleet.changed.beyond(seen)
    verdict = assembly.fleet.accel_verdict
    became = Resolved(value=verdict.value, reason=verdict.reason)
    assembly.runtime.publisher.show_host(accel=became)
    log.info("chosen", extra={"what": "accel", "value": became.value, "why": became.reason})


@contextlib.asynccontextmanager
async def _serving(config: Config, join: Join, doctor: Doctor) -> AsyncIterator[_Serving]:
    """Everything started, in order; everything closed, in the opposite order."""
    make_private_directory(config.state_dir)
    make_private_directory(config.run_dir, mode=0o711)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(lock_exclusive(config.state_dir / "agent.lock"))
        for directory in (config.state_dir, config.run_dir):
            remove_scratch(directory)
        clock = RealClock()
        store = await _open_store(config, clock)
        stack.push_async_callback(store.close)
        choices = await settle_egress(config, await choose(config), store)
        choices = await settle_cage(config, choices)
        for name in choices.__struct_fields__:
            became: Resolved = getattr(choices, name)
            log.info("chosen", extra={"what": name, "value": became.value, "why": became.reason})
        if choices.tee.value == Tee.SIMULATED:
            log.warning("no enclave is confidential: %s", SIMULATED)
            await make_simulated_chain(config, clock)
        host_id = _host_id(config)
        assembly = join(config, choices, clock, store, host_id)
        stack.push_async_callback(assembly.releases.close)
        parts = assembly.runtime.parts
        egress = EgressReporter(config, choices, assembly.runtime.publisher, parts.traffic)
        egress.begin()
        for part in (parts.gpus, parts.traffic, parts.enclaves, parts.probes):
            stack.push_async_callback(part.close)
        engine = UpdateEngine(
            assembly.runtime, revert_after_switch=config.update.revert_after_switch
        )
        given = inherited(os.environ)
        trust = await keep_trust(config, host_id, assembly.runtime.publisher, stack)
        surface = Surface(
            engine=engine,
            answers=StoredAnswers(parts.store),
            body_key=_body_key(config.state_dir),
            alive=assembly.runtime.liveness.late,
            doctor=doctor.look,
            status_names=names_of_this_host(config.listen.status_names),
        )
        rpc = Rpc(_rpc_socket(config, given), trust) if trust and config.listen.rpc else None
        server = ApiServer(surface, _listeners(config, given), rpc)
        keeper = None
        if isinstance(store, SqliteStore):
            keeper = StoreKeeper(store, assembly.runtime.publisher, config.store.backup_interval_s)
            stack.push_async_callback(keeper.close)
        stack.push_async_callback(assembly.runtime.close)
        stack.push_async_callback(server.close)
        if assembly.collateral is not None:
            stack.push_async_callback(assembly.collateral.close)
            await assembly.collateral.start()
        await server.start()
        if isinstance(store, DamagedStore):
            await _stand_by(assembly, store)
        else:
            await earlier_config.settle(config, choices, store)
            await assembly.runtime.start()
            surface.coordinator = link(config, assembly, trust, stack) or surface.coordinator
        yield _Serving(assembly, keeper, egress)


async def _open_store(config: Config, clock: RealClock) -> SqliteStore | DamagedStore:
    try:
        return await SqliteStore.open(config.state_dir / STORE_FILE, clock.now)
    except StoreDamagedError as error:
        words = {"error": describe(error)}
        log.error("store damaged, left as it is", extra=words)  # noqa: TRY400 - said to a person
        return DamagedStore(error)


async def _stand_by(assembly: Assembly, store: DamagedStore) -> None:
    """Serve what needs no store, and touch nothing: every VM and every route stays as it is.

    No VM is adopted, because without rows each would be one too many; a data plane that has a
    process of its own is kept alive, with the routes that it has recorded itself.
    """
    runtime = assembly.runtime
    runtime.publisher.show_store_damaged(store.said)
    try:
        await runtime.parts.traffic.start()
    except AgentError as error:
        log.warning("data plane not adopted", extra={"error": describe(error)})


def _host_id(config: Config) -> HostId:
    return derive_host_id() if config.host_id == "auto" else HostId(config.host_id)


def _body_key(state_dir: Path) -> bytes:
    """A key of this host's own, to recognise a request's body without keeping it."""
    path = state_dir / "request-digest.key"
    if not path.exists():
        write_atomic(path, secrets.token_bytes(32), mode=0o600)
    return path.read_bytes()


def _listeners(config: Config, given: Mapping[str, socket.socket]) -> list[Listener]:
    path = config.listen.socket or config.run_dir / "agent.sock"
    listeners = [local_listener(path, given.get("local"))]
    if config.listen.status:
        where = Listen.parse(config.listen.status)
        listeners.append(
            tcp_listener(where.address, where.port, Role.STATUS, given=given.get("status"))
        )
    return listeners


def _rpc_socket(config: Config, given: Mapping[str, socket.socket]) -> socket.socket:
    assert config.listen.rpc is not None
    where = Listen.parse(config.listen.rpc)
    return rpc_socket(where.address, where.port, given.get("rpc"))
