"""The daemon with the guests' collateral endpoint, which it has on confidential hosts alone.

python -m bench.with_collateral CONFIG     `attestation.collateral.listen` says where
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from agent.attestation.collateral_cache.service import open_collateral
from agent.config import Config
from agent.daemon.choices import Choices
from agent.daemon.parts import Assembly, build
from agent.daemon.run import main
from agent.host.clock import RealClock
from agent.model.ids import HostId
from agent.store.port import Store


def _joined(
    config: Config, choices: Choices, clock: RealClock, store: Store, host_id: HostId
) -> Assembly:
    service = open_collateral(config.attestation, state_dir=config.state_dir, clock=clock)
    return dataclasses.replace(build(config, choices, clock, store, host_id), collateral=service)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), _joined))
