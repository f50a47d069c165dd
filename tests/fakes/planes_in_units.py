"""Puts a route in force in a data plane whose process is a unit, and ends; or takes it back.

python -m tests.fakes.planes_in_units HOME KIND PORT begin|end|collide
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from agent.errors import AgentError, describe
from agent.host.units import in_units
from agent.model.enclave import Endpoint
from agent.model.ids import DeploymentName
from agent.model.resources import Listen
from agent.traffic.haproxy import HaproxyTraffic
from agent.traffic.port import Binding, RouteOrder
from agent.traffic.userspace import UserspaceTraffic

NOBODY = Endpoint(address="127.0.0.1", port=9)


def plane(home: Path, kind: str) -> HaproxyTraffic | UserspaceTraffic:
    home.mkdir(exist_ok=True, parents=True)
    run = in_units("enclave-traffic", "A trial", writable=(home,), complaints=home)
    if kind == "haproxy":
        return HaproxyTraffic(home / "haproxy", home / "haproxy.json", run_command=run)
    return UserspaceTraffic(
        home / "traffic.sock", home / "traffic.json", home / "traffic.log", run_command=run
    )


async def main(home: Path, kind: str, port: int, what: str) -> str:
    traffic = plane(home, kind)
    if what == "end":
        await traffic.shutdown()
        return "done"
    listen = Listen(address="127.0.0.1", port=port)
    order = RouteOrder(
        deployment=DeploymentName(f"trial-{what}"),
        generation=1,
        bindings=(Binding(listen=listen, endpoints=(NOBODY,)),),
    )
    try:
        await traffic.start()
        await traffic.apply(order)
    except AgentError as error:
        return describe(error)
    finally:
        await traffic.close()
    return "done"


if __name__ == "__main__":
    place = Path(sys.argv[1])
    said = asyncio.run(main(place / sys.argv[2], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
    (place / "told.json").write_text(json.dumps(said))
