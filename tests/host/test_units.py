"""Programs in units of their own, as `systemd-run` is asked for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.host.commands import CommandError, CompletedCommand
from agent.host.units import host_is_stopping, in_units, probe_units, runs_in


class Asked:
    """Takes the place of `run_command`."""

    def __init__(self, status: int = 0, stderr: bytes = b"", told: bytes = b"") -> None:
        self.finished = CompletedCommand(status, b"", stderr)
        self.told = told  # what the program in the unit says on its stderr
        self.argv: list[str] = []

    async def __call__(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        del stdin, timeout_s
        self.argv = list(argv)
        for word in argv:
            if word.startswith("--property=StandardError=append:"):
                Path(word.rpartition(":")[2]).write_bytes(self.told)
        return self.finished


async def test_a_host_without_systemd_has_no_units(tmp_path: Path) -> None:
    assert await probe_units("true", run=Asked(), booted=tmp_path / "none") == (
        "systemd does not run here"
    )


async def test_who_is_not_root_has_no_units(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        asked = Asked()
        assert await probe_units("true", run=asked, booted=tmp_path) is None
        assert asked.argv[-2:] == ["--", "true"]
    else:
        assert await probe_units("true", run=Asked(), booted=tmp_path) == "system units need root"


@pytest.mark.root
async def test_a_unit_that_does_not_run_is_told_with_the_reason(tmp_path: Path) -> None:
    asked = Asked(1, b"Failed to connect to bus: Connection refused\n")
    said = await probe_units("true", run=asked, booted=tmp_path)
    assert said == (
        "a transient unit does not run here: Failed to connect to bus: Connection refused"
    )

    async def missing(*args: object, **more: object) -> CompletedCommand:
        raise CommandError(["systemd-run"], "cannot be run: No such file or directory")

    assert "systemd-run cannot be run" in str(await probe_units(run=missing, booted=tmp_path))


async def test_what_a_program_in_a_unit_complains_of_is_passed_on(tmp_path: Path) -> None:
    asked = Asked(1, b"Job for u failed.\n", b"[ALERT] cannot bind socket\n")
    run = in_units("plane", "A plane", writable=(tmp_path,), complaints=tmp_path, run=asked)
    done = await run(["haproxy", "-D"])
    assert (done.status, done.complaint) == (1, "[ALERT] cannot bind socket")
    assert list(tmp_path.iterdir()) == []
    assert asked.argv[-3:] == ["--", "haproxy", "-D"]
    assert {f"--property=ReadWritePaths={tmp_path}", "--property=Type=forking"} < set(asked.argv)


async def test_each_start_is_a_unit_of_its_own(tmp_path: Path) -> None:
    asked = Asked()
    run = in_units("plane", "A plane", writable=(), complaints=tmp_path, run=asked)
    names = set()
    for _ in range(2):
        await run(["true"])
        names |= {word for word in asked.argv if word.startswith("--unit=plane-")}
    assert len(names) == 2


def test_the_kernel_says_what_unit_a_process_is_in() -> None:
    assert not runs_in(os.getpid(), "enclave-aaaaaaa2.service")
    own = Path("/proc/self/cgroup").read_text().splitlines()[0].rpartition("/")[2]
    assert own == "" or runs_in(os.getpid(), own)
    assert not runs_in(2**22 - 1, "any.service")


@pytest.mark.parametrize(
    ("status", "told", "stopping"),
    [
        (0, b"running\n", False),
        (1, b"degraded\n", False),
        (1, b"stopping\n", True),
        (1, b"", False),
    ],
)
async def test_a_host_that_shuts_down_is_known_by_what_systemd_says(
    tmp_path: Path, status: int, told: bytes, stopping: bool
) -> None:
    async def run(*args: object, **more: object) -> CompletedCommand:
        return CompletedCommand(status, told, b"")

    assert await host_is_stopping(run, tmp_path) is stopping
    assert await host_is_stopping(run, tmp_path / "none") is False


async def test_a_systemd_that_does_not_answer_shuts_nothing_down(tmp_path: Path) -> None:
    async def silent(*args: object, **more: object) -> CompletedCommand:
        raise CommandError(["systemctl"], "did not end within 2 s")

    assert await host_is_stopping(silent, tmp_path) is False
