"""What a HAProxy process is to begin with when there is none to ask: the orders, in a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from agent.host.files import FileAbsentError, StorageError, read_bounded, write_atomic
from agent.host.threads import finish_in_thread
from agent.model.ids import DeploymentName
from agent.traffic.port import RouteOrder, TrafficError

_MAX_BYTES = 4 << 20
_log = logging.getLogger(__name__)

Orders = Mapping[DeploymentName, RouteOrder]


class Record:
    """Written before the process is told, so that it is never older than what is in force."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> Orders:
        """Nothing if that cannot be told: the agent gives its orders again."""
        try:
            data = await finish_in_thread(read_bounded, self._path, _MAX_BYTES)
            orders = msgspec.json.decode(data, type=tuple[RouteOrder, ...])
        except FileAbsentError:
            return {}
        except (StorageError, msgspec.MsgspecError) as error:
            _log.warning("routes cannot be read file=%s error=%s", self._path, error)
            return {}
        return {order.deployment: order for order in orders}

    async def save(self, orders: Orders) -> None:
        """Raises TrafficError, having changed nothing."""
        data = msgspec.json.encode(tuple(orders.values()))
        try:
            await finish_in_thread(write_atomic, self._path, data)
        except StorageError as error:
            raise TrafficError("the routes cannot be made durable") from error

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
