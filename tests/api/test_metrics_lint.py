"""What Prometheus's own tool says of the metrics."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.api.test_gpus_over_http import FULL, show
from tests.fakes.gpus import OTHER, gpu

PROMTOOL = shutil.which("promtool")


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here")
async def test_promtool_finds_fault_with_the_exporters_own_names_alone(api) -> None:
    await api.deploy()
    api.engine.finish("web")
    api.engine.refused = {"guest_flows": 3}
    show(api, FULL, gpu(OTHER, guest={"memory_used_gib": 2.0}, owner="abcdefgh"))
    text = (await api.ask_status("GET", "/metrics")).text
    assert text.count("# TYPE DCGM_FI_DEV_") > 10
    assert text.count("# TYPE enclave_agent_") > 25
    argv = [PROMTOOL or "", "check", "metrics"]
    told = subprocess.run(
        argv, input=text, capture_output=True, text=True, timeout=60, check=False
    )
    assert told.returncode in (0, 3), told.stderr  # 3: it finds fault with something
    faults = [line for line in (told.stdout + told.stderr).splitlines() if line.strip()]
    assert [line for line in faults if not line.startswith("DCGM_FI_")] == []
