"""`enclave-agent gpus`: what a person reads, and the verb."""

from __future__ import annotations

import json

from agent.cli.exits import Exit
from agent.model.gpu import (
    CcMode,
    CcModes,
    GpuHealth,
    GpuReason,
    GpuState,
    HealthAction,
    Severity,
)
from agent.model.pci import Link
from tests.cli.test_pages import hold
from tests.fakes.gpus import BDF, FULL_LINK, OTHER, gpu, inventory, quarantine

SWITCH = gpu("0000:07:00.0", is_switch=True, name="NVIDIA NVSwitch (H100)", state=GpuState.FREE)
HOT = GpuHealth(
    severity=Severity.ERROR,
    action=HealthAction.REBOOT,
    reasons=(
        GpuReason(code="xid_79", detail="XID 79: reboot the host", since="2026-01-01T00:00:00Z"),
    ),
)


def populate(agent, **more: object) -> None:
    gpus = (
        gpu(
            BDF,
            name="NVIDIA H100 80GB HBM3",
            state=GpuState.IN_USE,
            owner="abcdefgh",
            driver="vfio-pci",
            numa_node=0,
            link=FULL_LINK,
            cc_mode=CcModes(active=CcMode.ON, pending=CcMode.ON),
        ),
        gpu(
            OTHER,
            device=0x9999,
            state=GpuState.UNHEALTHY,
            driver="nvidia",
            temperature_c=71.4,
            link=Link(),
            cc_mode=CcModes(active=CcMode.OFF, pending=CcMode.ON),
            health=HOT,
        ),
        gpu("0000:3a:00.0", state=GpuState.QUARANTINED, quarantine=quarantine()),
    )

    def put(engine) -> None:
        engine.gpus.inventory = inventory(*gpus, switches=(SWITCH,), **more)
        engine.publish()

    agent.api.do(put)


def test_the_page_of_gpus(agent) -> None:
    populate(agent)
    result = agent.call("gpus")
    assert result.exit_code == 0, result.output
    hold("gpus", result.stdout, agent)


def test_an_address_is_printed_as_it_is(agent) -> None:
    def put(engine) -> None:
        engine.gpus.inventory = inventory(gpu("0000:ab:00.0", state=GpuState.FREE))
        engine.publish()

    agent.api.do(put)
    assert "0000:ab:00.0" in agent.call("gpus").stdout


def test_an_inventory_that_is_not_complete_says_so(agent) -> None:
    populate(agent, complete=False)
    assert "not complete" in agent.call("gpus").stdout


def test_a_host_without_gpus_says_so(agent) -> None:
    def put(engine) -> None:
        engine.gpus.inventory = inventory()
        engine.publish()

    agent.api.do(put)
    assert agent.call("gpus").stdout == "this host has no NVIDIA GPU\n"


def test_json_is_the_agents_own(agent) -> None:
    populate(agent)
    shown = json.loads(agent.call("gpus", "-o", "json").stdout)
    assert [one["bdf"] for one in shown["gpus"]] == [BDF, OTHER, "0000:3a:00.0"]


def test_before_the_first_look_the_agent_is_not_to_be_reached(agent) -> None:
    assert agent.call("gpus").exit_code == Exit.UNREACHABLE


def test_a_release_says_what_the_gpu_is_now(agent) -> None:
    populate(agent)
    result = agent.call("gpus", "release", "0000:3a:00.0")
    assert (result.exit_code, result.stdout) == (0, "0000:3a:00.0 is free\n")
    assert agent.call("gpus", "release", "0000:ff:00.0").exit_code == Exit.UNKNOWN_NAME


def test_a_recovery_says_what_the_gpu_is_now(agent) -> None:
    populate(agent)
    result = agent.call("gpus", "recover", "0000:3a:00.0")
    assert result.exit_code == 0
    assert result.stdout.startswith("0000:3a:00.0 is back and quarantined\n")
    assert "enclave-agent gpus release 0000:3a:00.0" in result.stdout
    assert agent.call("gpus", "recover", "0000:ff:00.0").exit_code == Exit.UNKNOWN_NAME
