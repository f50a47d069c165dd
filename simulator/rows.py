"""Rows for tests: valid ones, with only what a test cares about to be named."""

from __future__ import annotations

import datetime as dt
from typing import Any

from agent.model.clock import Instant
from agent.model.enclave import Enclave, Lifecycle
from agent.model.evidence_edition import EVIDENCE_EDITION
from agent.model.ids import DeploymentName, EnclaveId, LeaseId, UpdateId
from agent.model.lease import Lease
from agent.model.reasons import Strategy
from agent.model.release import Artifact, Release
from agent.model.resources import Demand, Listen
from agent.model.revision import Deployment, Revision, Route, Slot, Wish
from agent.model.update import Finished, Preparing, Step, Update

WALL = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def instant(boottime_s: float = 1000.0, boot_id: str = "boot-1") -> Instant:
    wall = WALL + dt.timedelta(seconds=boottime_s - 1000)
    return Instant(boot_id=boot_id, boottime_s=boottime_s, wall=wall)


def deployment(name: str = "web", **changes: Any) -> Deployment:
    values: dict[str, Any] = {
        "wish": Wish.RUN,
        "active_slot": None,
        "active_revision": None,
        "route": Route(generation=0, enclave=None),
        "last_revision": 1,
        "created_at": instant(),
    }
    return Deployment(name=DeploymentName(name), **(values | changes))


def revision(number: int = 1, name: str = "web", **changes: Any) -> Revision:
    values: dict[str, Any] = {
        "repo": name,
        "tag": f"v1.{number}.0",
        "release_digest": "0" * 64,
        "demand": Demand(memory_mib=256, vcpus=1),
        "listen": Listen(address="127.0.0.1", port=8443),
        "created_at": instant(),
    }
    return Revision(deployment=DeploymentName(name), number=number, **(values | changes))


def release(**changes: Any) -> Release:
    values: dict[str, Any] = {
        "repo": "web",
        "tag": "v1.1.0",
        "digest": "0" * 64,
        "cvm_version": "0.12.0",
        "layout": "virtio-pci",
        "cmdline": "root=/dev/mapper/root",
        "debug": False,
        "config": b"",
        "root_hash": "0" * 64,
        "kernel": Artifact(name="kernel", sha256="0" * 64),
        "initrd": Artifact(name="initrd", sha256="0" * 64),
        "root_disk": Artifact(name="root", sha256=None),
        "demand": Demand(memory_mib=256, vcpus=1),
    }
    return Release(**(values | changes))


def enclave(enclave_id: str = "aaaaaaaa", name: str = "web", **changes: Any) -> Enclave:
    values: dict[str, Any] = {
        "slot": Slot.BLUE,
        "revision": 1,
        "lifecycle": Lifecycle.PLANNED,
        "launch_uuid": "00000000-0000-4000-8000-000000000000",
        "address": "10.215.0.2",
        "memory_mib": 256,
        "vcpus": 1,
        "created_at": instant(),
        "evidence_edition": EVIDENCE_EDITION,
    }
    values |= changes
    return Enclave(id=EnclaveId(enclave_id), deployment=DeploymentName(name), **values)


def update(update_id: str = "u1", name: str = "web", **changes: Any) -> Update:
    values: dict[str, Any] = {
        "strategy": Strategy.FRESH,
        "staging": False,
        "revision": 1,
        "tag": "v1.1.0",
        "enclave": EnclaveId("aaaaaaaa"),
        "slot": Slot.BLUE,
        "state": Preparing(),
        "created_at": instant(),
    }
    return Update(id=UpdateId(update_id), deployment=DeploymentName(name), **(values | changes))


def finished_update(update_id: str, name: str = "web") -> Update:
    return update(update_id, name, state=Finished(step=Step.RETIRE))


def lease(lease_id: str = "l1", **changes: Any) -> Lease:
    values: dict[str, Any] = {
        "holder": "local:0",
        "deployment": None,
        "strategy": Strategy.FRESH,
        "demand": Demand(memory_mib=256, vcpus=1),
        "gpus": (),
        "address": None,
        "created_at": instant(),
        "expires_at": instant(1300),
    }
    return Lease(id=LeaseId(lease_id), **(values | changes))
