"""Of an enclave that is gone the console is kept where its owner is known, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from agent.enclaves.ended_consoles import EndedConsoles
from tests.fakes.vms import lone_fleet, row


async def test_a_console_log_that_no_row_knows_is_forgotten(short_dir: Path) -> None:
    """The agent was killed between dropping an enclave's row and deleting its log."""
    kept, dropped = row("aaaaaaa2"), row("aaaaaaa3")
    for vm in (kept, dropped):
        directory = short_dir / "state" / "consoles" / vm.id
        directory.mkdir(parents=True)
        (directory / "console.log").write_text("printed")
    async with lone_fleet(short_dir, rows=(kept,)) as fleet:
        fleet.forget_others([kept.id])
        assert fleet.console_tail(kept.id) == b"printed"
        assert fleet.console_tail(dropped.id) == b""
        assert [path.name for path in (short_dir / "state" / "consoles").iterdir()] == [kept.id]
        assert fleet.ended_console_tail(dropped.id, 100) is None  # nobody knows whose it was


async def test_the_console_of_one_that_was_launched_here_is_kept_when_it_goes(
    short_dir: Path,
) -> None:
    vm = row("aaaaaaa4")
    EndedConsoles(short_dir / "state").mark(vm, "v1")
    directory = short_dir / "state" / "consoles" / vm.id
    directory.mkdir(parents=True)
    (directory / "console.log").write_text("last words")
    async with lone_fleet(short_dir, rows=(vm,)) as fleet:
        fleet.forget(vm.id)
        assert (fleet.console_tail(vm.id), directory.exists()) == (b"", False)
        assert fleet.ended_console_tail(vm.id, 5) == b"words"
        (one,) = fleet.ended_consoles(vm.deployment)
        assert (one.enclave, one.tag) == (vm.id, "v1")
        fleet.forget(vm.id)
        assert fleet.ended_console_tail(vm.id, 5) == b"words"
