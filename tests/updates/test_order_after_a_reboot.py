"""What starts first when all of a host starts."""

from __future__ import annotations

import msgspec

from agent.model.ids import Bdf, DeploymentName
from agent.updates.engine.launch_order import biggest_first
from simulator.rows import enclave


def test_the_biggest_deployments_start_first_by_gpus_and_then_by_memory() -> None:
    def row(name: str, number: int, memory_mib: int, gpus: int = 0):
        bdfs = tuple(Bdf(f"0000:{number}{at}:00.0") for at in range(gpus))
        one = enclave(f"aaaaaaa{number}", memory_mib=memory_mib, gpus=bdfs)
        return msgspec.structs.replace(one, deployment=DeploymentName(name))

    rows = [row("small", 2, 512), row("board", 3, 256, gpus=2), row("large", 4, 4096)]
    names = [DeploymentName(one) for one in ("idle", "small", "large", "board")]
    assert biggest_first(names, rows) == ["board", "large", "small", "idle"]
