"""Console logs do not outlive the enclaves that they are of."""

from __future__ import annotations

from pathlib import Path

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
