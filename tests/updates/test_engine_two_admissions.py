"""Two processes admit into one store at the same moment: nothing is ever given away twice."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.capacity.supply import vm_memory_mib
from agent.host.clock import RealClock
from agent.store.sqlite import SqliteStore
from tests.fakes.admitting_process import hear, start, tell

ROUNDS = 25


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes on one store."""
    processes = [start(tmp_path / "agent.db") for _ in range(2)]
    yield processes
    for process in processes:
        with process:
            pass  # closes its stdin, and waits for its end
        assert process.returncode == 0


async def rows(tmp_path: Path) -> tuple[list[str], list[str], list[str]]:
    """Deployments, addresses of enclaves, holders' keys of claims."""
    store = await SqliteStore.open(tmp_path / "agent.db", RealClock().now)
    try:
        return await store.read(
            lambda tx: (
                [row.name for row in tx.deployments()],
                [row.address for row in tx.enclaves()],
                [f"{claim.kind} {claim.key}" for claim in tx.claims()],
            )
        )
    finally:
        await store.close()


async def test_exactly_one_of_two_takes_the_last_slot(
    two: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Each round the host has room for one more than before, and both want it."""
    for number in range(1, ROUNDS + 1):
        for who, process in enumerate(two):
            name, port = f"d{number}-{who}", 1000 + 2 * number + who
            tell(process, name=name, port=port, memory_mib=number * vm_memory_mib(256))
        answers = sorted(hear(process) for process in two)
        assert answers == ["admitted", "memory_insufficient"], number
    names, addresses, claims = await rows(tmp_path)
    assert len(names) == len(set(addresses)) == ROUNDS
    assert len(claims) == len(set(claims)) == 2 * ROUNDS


async def test_exactly_one_of_two_takes_the_last_gpu(
    two: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Each round the host has one card more than before, and both want it; some for a lease."""
    for number in range(1, ROUNDS + 1):
        for who, process in enumerate(two):
            name, port = f"d{number}-{who}", 1000 + 2 * number + who
            order = {"name": name, "port": port, "memory_mib": 1 << 20, "gpus": number}
            tell(process, **order, **({"lease": 3600} if (who + number) % 3 else {}))
        answers = sorted(hear(process) for process in two)
        assert answers == ["admitted", "gpus_insufficient"], number
    store = await SqliteStore.open(tmp_path / "agent.db", RealClock().now)
    rows, leases = await store.read(lambda tx: (tx.enclaves(), tx.leases()))
    await store.close()
    held = [gpu for row in (*rows, *leases) for gpu in row.gpus]
    assert len(held) == len(set(held)) == ROUNDS
    assert rows
    assert leases


async def test_exactly_one_of_two_gets_a_listener_and_a_name(
    two: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    for number in range(ROUNDS):
        for who, process in enumerate(two):
            tell(process, name=f"d{number}-{who}", port=1000 + number, memory_mib=1 << 20)
        assert sorted(map(hear, two)) == ["admitted", "listen_in_use"], number
        for who, process in enumerate(two):
            tell(process, name=f"n{number}", port=2000 + 2 * number + who, memory_mib=1 << 20)
        assert sorted(map(hear, two)) == ["admitted", "exists"], number
    names, addresses, _ = await rows(tmp_path)
    assert len(names) == len(set(addresses)) == 2 * ROUNDS


async def test_of_a_lease_and_an_admission_at_once_exactly_one_takes_the_last_slot(
    two: list[subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Leases of an hour fill the host as enclaves do."""
    for number in range(1, ROUNDS + 1):
        for who, process in enumerate(two):
            name, port = f"d{number}-{who}", 1000 + 2 * number + who
            order = {"name": name, "port": port, "memory_mib": number * vm_memory_mib(256)}
            tell(process, **order, **({"lease": 3600} if (who + number) % 3 else {}))
        answers = sorted(hear(process) for process in two)
        assert answers == ["admitted", "memory_insufficient"], number
    store = await SqliteStore.open(tmp_path / "agent.db", RealClock().now)
    rows, leases, claims = await store.read(
        lambda tx: (tx.enclaves(), tx.leases(), [claim.key for claim in tx.claims()])
    )
    await store.close()
    held = [row.address for row in rows] + [lease.address for lease in leases]
    assert len(held) == len(set(held)) == ROUNDS
    assert set(held) <= set(claims)
    assert leases
