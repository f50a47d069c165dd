"""Secrets that are given: those that a guest reads, near misses, and those that it fetches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from agent.model.ids import DeploymentName
from agent.model.release import Release
from agent.updates.admission.secret_names import check_declared, undeclared
from agent.updates.errors import FieldError, RefusedError
from agent.updates.orders import Change, PlanQuestion
from simulator.instant_host import CALLER, InstantReleases, Make, new
from simulator.rows import release
from tests.fakes.sealed_machine import NAME, RUNNING, WAITING, Sealed, SealedMachine

WEB = DeploymentName("web")
OF_THE_BOOT = (
    "REGISTRY_GHCR_IO_TOKEN",
    "REGISTRY_GHCR_IO_USER",
    "GCLOUD_KEY",
    "GCLOUD_REGISTRY",
    "CERT_AUTH_TOKEN",
    "METRICS_API_KEY",
)


def test_what_a_boot_reads_needs_no_declaration() -> None:
    assert undeclared(OF_THE_BOOT, ()) == []
    check_declared(OF_THE_BOOT, ("REGISTRY_GHCR_IO_TOKENS",), "secrets.")


def test_what_only_looks_so_does() -> None:
    names = ["REGISTRY__TOKENS", "REGISTRY_TOKEN", "XGCLOUD_KEY", "cert_auth_token"]
    assert undeclared(names, ()) == sorted(names)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("API_KYE", "API_KEY"), ("APIKEY", "API_KEY"), ("CERT_AUTH_TOKN", "CERT_AUTH_TOKEN")],
)
def test_a_near_miss_is_refused_with_the_nearest_name(name: str, nearest: str) -> None:
    with pytest.raises(FieldError, match=f"the nearest is {nearest}$") as refused:
        check_declared([name], ["API_KEY", "OTHER"], "secrets.")
    assert refused.value.path == f"secrets.{name}"


async def test_a_near_miss_is_refused_wherever_it_is_given(make: Make) -> None:
    host = await make()
    for tag in ("v1", "v2"):
        host.releases.made[tag] = release(tag=tag, secret_names=("API_KEY",))
    given = {"API_KEY": "one", "API_KYE": "two"}
    with pytest.raises(FieldError, match="API_KYE"):
        await host.engine.deploy(new(WEB, "v1", secrets=given), CALLER)
    good = {"API_KEY": "one", "REGISTRY_GHCR_IO_TOKEN": "t"}
    update = await host.engine.deploy(new(WEB, "v1", secrets=good), CALLER)
    await host.finish(update)
    assert not any("REGISTRY" in one for one in update.warnings)
    with pytest.raises(FieldError, match="API_KYE"):
        await host.engine.update(WEB, Change(tag="v2", secrets={"API_KYE": "two"}), CALLER)
    with pytest.raises(FieldError, match="API_KYE: no secret"):
        await host.engine.set_secrets(WEB, {"API_KYE": "two"}, CALLER)
    asked = PlanQuestion(deployment=WEB, tag="v2", secrets=("API_KYE",))
    with pytest.raises(FieldError, match="API_KYE"):
        await host.engine.plan(asked)
    revision = host.engine.snapshot.deployments[WEB].revision
    assert revision is not None
    assert sorted(revision.secrets) == ["API_KEY", "REGISTRY_GHCR_IO_TOKEN"]


async def test_one_that_nothing_reads_is_told(make: Make) -> None:
    host = await make()
    update = await host.engine.deploy(new(WEB, "v1", secrets={"SPARE": "s"}), CALLER)
    assert any("SPARE" in one and "declares none" in one for one in update.warnings)


async def test_a_misspelt_one_may_still_be_removed(make: Make) -> None:
    host = await make()
    host.releases.made["v1"] = release(tag="v1", secret_names=("API_KEY",))
    await host.finish(await host.engine.deploy(new(WEB, "v1", secrets={"API_KEY": "one"}), CALLER))
    assert await host.engine.set_secrets(WEB, {"API_KYE": None}, CALLER) == ()


async def test_what_the_guest_fetches_itself_is_not_missing(make: Make) -> None:
    host = await make()
    host.releases.made["v1"] = release(tag="v1", secret_names=("KEY",))
    with pytest.raises(RefusedError) as refused:
        await host.engine.deploy(new(WEB, "v1"), CALLER)
    assert refused.value.code == "secrets_missing"
    host.releases.made["v1"] = release(tag="v1", secret_names=("KEY",), fetches_secrets=True)
    update = await host.finish(await host.engine.deploy(new(WEB, "v1"), CALLER))
    assert update.status == "completed"


class Fetching(Sealed):
    """Its guests fetch those declared secrets that they are not given."""

    async def resolve(self, repo: str, tag: str, digest: str | None = None) -> Release:
        found = await super().resolve(repo, tag, digest)
        return msgspec.structs.replace(found, fetches_secrets=True)


async def machine_of(
    directory: Path, releases: InstantReleases, given: Mapping[str, str]
) -> SealedMachine:
    machine = SealedMachine(directory, releases=releases)
    await machine.deploy(**given)
    return machine


async def test_after_a_reboot_nobody_waits_for_what_the_guest_fetches(tmp_path: Path) -> None:
    machine = await machine_of(tmp_path, Fetching(), {"KEY": "one"})
    await machine.reboot()
    await machine.until(RUNNING)
    assert "secrets_missing" not in machine.problems()
    assert machine.facts.row.active_revision == 1
    await machine.host.runtime.close()


async def test_what_it_cannot_fetch_is_waited_for_all_the_same(tmp_path: Path) -> None:
    given = {"KEY": "one", "REGISTRY_GHCR_IO_TOKEN": "t"}
    machine = await machine_of(tmp_path, Fetching(), given)
    await machine.reboot()
    await machine.until(WAITING)
    said = machine.problems()["secrets_missing"]
    assert "REGISTRY_GHCR_IO_TOKEN" in said
    assert "KEY," not in said
    await machine.put(REGISTRY_GHCR_IO_TOKEN="t")
    await machine.until(RUNNING)
    await machine.host.runtime.close()


async def test_a_rollback_does_not_need_what_the_guest_fetches(tmp_path: Path) -> None:
    machine = await machine_of(tmp_path, Fetching(), {"KEY": "one"})
    await machine.update(tag="v2", secrets={"KEY": None})
    await machine.reboot()
    await machine.until(RUNNING)
    rolled = await machine.host.engine.rollback(NAME, 1, CALLER)
    assert (await machine.host.finish(rolled)).status == "completed"
    await machine.host.runtime.close()
