"""Values kept at rest: encrypted by the real systemd-creds, with a host's key of the test's."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.host.commands import run_command
from agent.host.credentials import CredentialCipher, CredentialError, why_none
from agent.model.ids import DeploymentName
from agent.updates.secrets.at_rest import AtRest
from agent.updates.snapshot.snapshot import Problem
from simulator.instant_host import CALLER
from tests.fakes.sealed_machine import NAME, RUNNING, WAITING, SealedMachine

OTHER = DeploymentName("other")


@pytest.fixture
def host_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where systemd-creds has the host's key; it makes one where there is none."""
    key = tmp_path / "host.key"
    monkeypatch.setenv("SYSTEMD_CREDENTIAL_SECRET", str(key))
    return key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "at-rest"


@pytest.fixture
async def machine(tmp_path: Path, folder: Path, host_key: Path) -> AsyncIterator[SealedMachine]:
    machine = SealedMachine(
        tmp_path, lambda: AtRest(folder, CredentialCipher(run_command), why_none)
    )
    await machine.deploy()
    yield machine
    await machine.host.runtime.close()


def kept(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def problem(machine: SealedMachine, code: str) -> Problem | None:
    found = machine.host.engine.snapshot.problems
    return next((one for one in found if one.code == code), None)


async def said(machine: SealedMachine, code: str) -> Problem:
    async with asyncio.timeout(20):
        while (found := problem(machine, code)) is None:
            await machine.tick()
    return found


async def test_what_is_encrypted_is_decrypted_under_its_own_name_alone(host_key: Path) -> None:
    credentials = CredentialCipher(run_command)
    for value in (b"", b"one\r\ntwo\n\xc3\xa9", b"x" * 65536):
        sealed = await credentials.encrypt("web.KEY.1", value)
        assert value == b"" or value not in sealed
        assert await credentials.decrypt("web.KEY.1", sealed) == value
    with pytest.raises(CredentialError, match=r"web\.KEY\.1.*does not match"):
        await credentials.decrypt("web.KEY.2", sealed)


async def test_after_a_reboot_it_starts_by_itself(machine: SealedMachine, folder: Path) -> None:
    assert kept(folder) == ["web/KEY.1"]
    file = folder / "web/KEY.1"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [stat.S_IMODE(one.stat().st_mode) for one in (folder, file.parent)] == [0o700] * 2
    assert b"one" not in file.read_bytes()
    await machine.put(KEY="two")
    await machine.reboot()
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 1}
    assert machine.facts.stale_secrets == ("KEY",)
    assert machine.problems() == {}
    assert (machine.directory / "secrets/web/KEY.1").read_text() == "one"


async def test_a_file_lives_as_long_as_its_version(machine: SealedMachine, folder: Path) -> None:
    await machine.put(KEY="two")
    assert kept(folder) == ["web/KEY.1", "web/KEY.2"]
    await machine.put(KEY="three", SPARE="s")
    assert kept(folder) == ["web/KEY.1", "web/KEY.3", "web/SPARE.1"]
    await machine.put(SPARE=None)
    assert kept(folder) == ["web/KEY.1", "web/KEY.3"]
    await machine.host.engine.delete(NAME, CALLER)
    async with asyncio.timeout(20):
        while NAME in machine.host.engine.snapshot.deployments:
            await machine.tick()
    assert kept(folder) == []


async def test_what_a_crash_left_goes_at_the_start(machine: SealedMachine, folder: Path) -> None:
    for name in ("web/KEY.7", "web/.1f.new", "web/odd", "gone/KEY.1"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("left over")
    await machine.restart()
    assert kept(folder) == ["web/KEY.1"]


async def test_a_leftover_never_becomes_the_value_of_a_version_that_could_not_be_kept(
    machine: SealedMachine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "web/KEY.2").write_bytes((folder / "web/KEY.1").read_bytes())
    monkeypatch.setenv("PATH", "/nonexistent")
    await machine.put(KEY="two")
    assert kept(folder) == ["web/KEY.1"]


async def test_a_value_that_could_not_be_kept_is_said_and_kept_later(
    machine: SealedMachine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setenv("PATH", "/nonexistent")
        assert await machine.put(KEY="two") == ("KEY",)
        found = await said(machine, "secrets_not_kept")
        assert found.detail.startswith("web: KEY: systemd-creds cannot be run")
        await machine.restart()
        found = await said(machine, "secrets_not_kept")
        assert found.detail == "no secret can be kept at rest: systemd-creds is not there"
    await machine.restart()
    async with asyncio.timeout(20):
        while kept(folder) != ["web/KEY.1", "web/KEY.2"]:
            await machine.tick()
        while machine.problems():
            await machine.tick()


async def test_without_the_hosts_key_it_waits_and_says_why(
    machine: SealedMachine, folder: Path, host_key: Path
) -> None:
    before = (folder / "web/KEY.1").read_bytes()
    away = host_key.rename(host_key.with_name("away"))
    await machine.reboot()
    await machine.until(WAITING)
    found = await said(machine, "secrets_unreadable")
    assert found.detail.startswith("web: what is kept at rest cannot be read: KEY: systemd-creds")
    assert "secrets set web" in found.mend
    await machine.stays(WAITING)
    assert (folder / "web/KEY.1").read_bytes() == before
    host_key.unlink(missing_ok=True)  # systemd-creds may have made another
    away.rename(host_key)
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 1}
    assert machine.problems() == {}


async def test_a_broken_file_is_replaced_by_what_is_supplied(
    machine: SealedMachine, folder: Path
) -> None:
    await machine.put(KEY="two")
    (folder / "web/KEY.1").write_text("broken")
    await machine.reboot()
    await machine.until(WAITING)
    await said(machine, "secrets_unreadable")
    await machine.stays(WAITING)  # what nobody supplied since is no reason to launch it
    await machine.put(KEY="one")
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 1}
    assert problem(machine, "secrets_unreadable") is None
    await machine.reboot()
    await machine.until(RUNNING)


async def test_other_values_are_enough_when_what_was_kept_is_lost(
    machine: SealedMachine, folder: Path, host_key: Path
) -> None:
    host_key.unlink()
    await machine.reboot()
    await machine.until(WAITING)
    await machine.put(KEY="two")
    await machine.until(RUNNING)
    assert machine.given == {"KEY": 2}
    assert problem(machine, "secrets_unreadable") is None
    await machine.reboot()
    await machine.until(RUNNING)


async def test_switched_on_later_it_keeps_what_is_in_memory(
    machine: SealedMachine, folder: Path
) -> None:
    (folder / "web/KEY.1").unlink()
    await machine.restart()
    async with asyncio.timeout(20):
        while kept(folder) != ["web/KEY.1"]:
            await machine.tick()


async def test_switched_off_nothing_stays(machine: SealedMachine, folder: Path) -> None:
    machine.at_rest = lambda: AtRest(folder)
    await machine.restart()
    assert not folder.exists()
    assert (machine.directory / "secrets/web/KEY.1").read_text() == "one"
    await machine.put(KEY="two")
    assert not folder.exists()
    await machine.reboot()
    await machine.until(WAITING)
