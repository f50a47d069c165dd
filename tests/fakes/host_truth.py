"""Whether a host is as its daemon's store says: processes, directories, links, claims, data plane.

For a daemon at rest: no update runs, nothing is being stopped. It may be running or not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from agent.daemon.choices import Choices
from agent.daemon.networks import network_of, traffic_of
from agent.daemon.parts import secrets_dir
from agent.enclaves.network import Network
from agent.host.clock import RealClock
from agent.model.enclave import Enclave, Lifecycle
from agent.model.ids import DeploymentName
from agent.model.lease import ClaimKind, Lease
from agent.model.preparation import GpuCondition
from agent.model.revision import Deployment, Revision
from agent.store.port import Reader
from agent.store.sqlite import SqliteStore
from agent.traffic.port import Binding, RouteOrder
from agent.updates.snapshot.snapshot import Resolved
from tests.fakes.daemon_process import Daemon, kill_all, processes_in

_MOMENT_S = 5.0
_LAST_EVENTS = 64  # more than one story writes
_ID = re.compile(r"[a-z2-7]{8}")


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """What the store holds, as far as the host must agree with it."""

    deployments: list[Deployment]
    enclaves: list[Enclave]
    revisions: dict[tuple[str, int], Revision]
    secrets: dict[str, dict[str, tuple[int, str]]]
    claims: set[tuple[str, str, str]]
    conditions: list[GpuCondition]
    leases: list[Lease]
    running: list[str]


async def recorded(state_dir: Path) -> Recorded:
    """Read the store beside whoever else uses it."""
    store = await SqliteStore.open(state_dir / "agent.db", RealClock().now)
    try:
        return await store.read(_read)
    finally:
        await store.close()


async def last_told(state_dir: Path, kind: str, to: str) -> int:
    """The sequence of the newest event of that kind among the last ones; 0: none is there."""

    def newest(tx: Reader) -> int:
        _, last = tx.event_bounds()
        events = tx.events(max(0, last - _LAST_EVENTS), _LAST_EVENTS)
        return max((one.sequence for one in events if (one.kind, one.to) == (kind, to)), default=0)

    store = await SqliteStore.open(state_dir / "agent.db", RealClock().now)
    try:
        return await store.read(newest)
    finally:
        await store.close()


def _read(tx: Reader) -> Recorded:
    deployments = tx.deployments()
    names = [row.name for row in deployments]
    return Recorded(
        deployments=deployments,
        enclaves=tx.enclaves(),
        revisions={(name, r.number): r for name in names for r in tx.revisions(name)},
        secrets={name: tx.secret_versions(name) for name in names},
        claims={(claim.kind, claim.key, claim.holder) for claim in tx.claims()},
        conditions=tx.gpu_conditions(),
        leases=[lease for lease in tx.leases() if not lease.expired],
        running=[name for name in names if tx.running_update(name) is not None],
    )


async def discrepancies(daemon: Daemon) -> list[str]:
    """Every way in which the host is not as recorded. Empty is good."""
    rows = await recorded(daemon.state)
    network = network_of(daemon.typed_config(), _choices(daemon))
    found = [f"an update of {name} runs" for name in rows.running]
    found += _rows(rows)
    found += await _processes_at_rest(daemon, rows)
    found += _directories(daemon, rows)
    found += _claims(rows)
    found += _gpus(rows)
    found += _values(daemon, rows)
    attached = await network.list_attached()
    wanted = {row.id for row in rows.enclaves} if daemon.mode == "tap" else set()
    found += _differ("taps", wanted, set(attached))
    found += await _data_plane(daemon, rows, network)
    return found


def _choices(daemon: Daemon) -> Choices:
    def is_now(value: str) -> Resolved:
        return Resolved(value=value, reason="")

    traffic = "nftables" if daemon.mode == "tap" else "userspace"
    return Choices(
        tee=is_now("none"),
        supervisor=is_now("detached"),
        network=is_now(daemon.mode),
        traffic=is_now(traffic),
    )


def _differ(what: str, wanted: set[str], there: set[str]) -> Iterator[str]:
    if wanted - there:
        yield f"{what} missing: {sorted(wanted - there)}"
    if there - wanted:
        yield f"{what} left over: {sorted(there - wanted)}"


def _rows(rows: Recorded) -> Iterator[str]:
    for row in rows.enclaves:
        if row.lifecycle is not Lifecycle.RUNNING:
            yield f"enclave {row.id} is {row.lifecycle}"
    for deployment in rows.deployments:
        own = [row for row in rows.enclaves if row.deployment == deployment.name]
        if len(own) > 1:
            yield f"{deployment.name} has {len(own)} enclaves"
        if deployment.active_slot is None and own:
            yield f"{deployment.name} has an enclave and no active slot"
        route = deployment.route.enclave
        if route is not None and route not in {row.id for row in own}:
            yield f"{deployment.name} is routed to enclave {route}, which is gone"


def vms_in(daemon: Daemon) -> dict[str, list[int]]:
    """Pids by launch uuid of every VM in this place."""
    return _vms(processes_in(daemon.home))


def _vms(processes: Mapping[int, list[str]]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for pid, argv in processes.items():
        with contextlib.suppress(ValueError):
            found.setdefault(argv[argv.index("-uuid") + 1], []).append(pid)
    return found


def end_vm(daemon: Daemon, launch_uuid: str) -> bool:
    """Kill that VM -9, as the kernel does when memory is short; whether it was there."""
    pids = vms_in(daemon).get(launch_uuid, [])
    kill_all(dict.fromkeys(pids))
    return bool(pids)


async def _processes_at_rest(daemon: Daemon, rows: Recorded) -> list[str]:
    """What a daemon runs for a moment (`nft`, say), or is becoming it, is no discrepancy."""
    deadline = time.monotonic() + _MOMENT_S
    while (found := list(_processes(daemon, rows))) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return found


def _processes(daemon: Daemon, rows: Recorded) -> Iterator[str]:
    there = processes_in(daemon.home)
    running = _vms(there)
    yield from _differ("VMs", {row.launch_uuid for row in rows.enclaves}, set(running))
    for row in rows.enclaves:
        pids = running.get(row.launch_uuid, [])
        if row.process is None or pids != [row.process.pid]:
            yield f"enclave {row.id}: recorded process {row.process}, running {pids}"
    others = {
        pid: argv
        for pid, argv in there.items()
        if "-uuid" not in argv and (daemon.ended or pid != daemon.pid)
    }
    proxies = [pid for pid, argv in others.items() if _is_proxy(argv)]
    holders = [pid for pid, argv in others.items() if _holds_ports(argv)]
    if len(proxies) > (0 if daemon.mode == "tap" else 1):
        yield f"traffic proxies: {proxies}"
    if len(holders) > (1 if daemon.mode == "tap" and rows.deployments else 0):
        yield f"holders of ports: {holders}"
    ours = {*proxies, *holders}
    strangers = {pid: argv for pid, argv in others.items() if pid not in ours}
    if strangers:
        yield f"processes left over: {strangers}"


def _is_proxy(argv: list[str]) -> bool:
    plane = not {"traffic-proxy", "agent.traffic.proxy"}.isdisjoint(argv)
    return plane and not _holds_ports(argv)


def _holds_ports(argv: list[str]) -> bool:
    """The same program, for a data plane that does not listen itself."""
    return any(word.endswith("/ports.sock") for word in argv)


def _directories(daemon: Daemon, rows: Recorded) -> Iterator[str]:
    ids = {str(row.id) for row in rows.enclaves}
    there = {path.name for path in daemon.run.iterdir() if _ID.fullmatch(path.name)}
    yield from _differ("run directories", ids, there)
    consoles = {path.name for path in (daemon.state / "consoles").iterdir()}
    yield from _differ("console logs", ids & consoles, consoles)
    scratch = [
        str(path.relative_to(daemon.home))
        for root in (daemon.state, daemon.run)
        for path in root.rglob(".*.new")
        if not path.is_relative_to(daemon.state / "cache")  # which cleans itself when it is used
    ]
    if scratch:
        yield f"half-written files left over: {scratch}"


def _claims(rows: Recorded) -> Iterator[str]:
    wanted = {(ClaimKind.ADDRESS, row.address, row.id) for row in rows.enclaves}
    for row in rows.enclaves:
        wanted |= {(ClaimKind.GPU, bdf, row.id) for bdf in (*row.gpus, *row.switches)}
    for lease in rows.leases:
        wanted |= {(ClaimKind.GPU, bdf, lease.id) for bdf in lease.gpus}
        wanted |= {(ClaimKind.ADDRESS, lease.address, lease.id)} if lease.address else set()
    for deployment in rows.deployments:
        number = deployment.active_revision or deployment.last_revision
        revision = rows.revisions[deployment.name, number]
        for key in revision.listen_claims:
            wanted.add((ClaimKind.LISTEN, key, deployment.name))
    yield from _differ("claims", {str(c) for c in wanted}, {str(c) for c in rows.claims})


def _gpus(rows: Recorded) -> Iterator[str]:
    """What no enclave has is clean; nothing is being worked on."""
    taken = {bdf for row in rows.enclaves for bdf in (*row.gpus, *row.switches)}
    for row in rows.conditions:
        if row.busy or (not row.clean and row.bdf not in taken) or row.fault:
            yield f"GPU {row.bdf} is left as {row}"


def _values(daemon: Daemon, rows: Recorded) -> Iterator[str]:
    """Secrets' values: those that a revision or the present versions name, and no others."""
    wanted = set()
    for name, versions in rows.secrets.items():
        wanted |= {f"{name}/{secret}.{version}" for secret, (version, _) in versions.items()}
    for (name, _), revision in rows.revisions.items():
        wanted |= {f"{name}/{secret}.{version}" for secret, version in revision.secrets.items()}
    root = secrets_dir(daemon.typed_config())
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    yield from _differ("secrets' values", wanted, there)


async def _data_plane(daemon: Daemon, rows: Recorded, network: Network) -> list[str]:
    proxy_runs = any(_is_proxy(argv) for argv in processes_in(daemon.home).values())
    if daemon.mode == "user" and not proxy_runs:
        return ["no traffic proxy runs"] if rows.deployments else []
    config, choices = daemon.typed_config(), _choices(daemon)
    traffic = traffic_of(config, choices, network_of(config, choices))
    try:
        in_force = await traffic.observe()
    finally:
        await traffic.close()
    wanted = {row.name: _order(row, rows, network) for row in rows.deployments}
    return list(_orders_differ(wanted, in_force))


def _order(deployment: Deployment, rows: Recorded, network: Network) -> RouteOrder:
    target = next((row for row in rows.enclaves if row.id == deployment.route.enclave), None)
    number = deployment.active_revision or deployment.last_revision
    revision = rows.revisions[deployment.name, target.revision if target else number]
    bindings = []
    for listener in revision.listeners:
        ports = revision.guest_ports
        ends = (network.endpoint(target.address, listener.guest_port, ports),) if target else ()
        bindings.append(Binding(listen=listener.listen, endpoints=ends))
    return RouteOrder(
        deployment=deployment.name,
        generation=deployment.route.generation,
        bindings=tuple(bindings),
        domain=revision.domain,
    )


def _orders_differ(
    wanted: Mapping[DeploymentName, RouteOrder], there: Mapping[DeploymentName, RouteOrder]
) -> Iterator[str]:
    yield from _differ("routes", set(wanted), set(there))
    for name in set(wanted) & set(there):
        if wanted[name] != there[name]:
            yield f"the route in force is {there[name]}, the recorded one {wanted[name]}"


def links_of(daemon: Daemon) -> set[str]:
    """The daemon's bridge and whatever is a port of it."""
    listing = subprocess.run(["ip", "-j", "link"], check=True, capture_output=True)
    return {
        link["ifname"]
        for link in json.loads(listing.stdout)
        if daemon.bridge in (link["ifname"], link.get("master"))
    }
