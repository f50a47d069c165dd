"""Tells of what was found of the guests' links: in the log, as events, and as problems."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from agent.enclaves.links import KernelRoute
from agent.enclaves.tap_names import enclave_of
from agent.enclaves.tap_state import Wanted
from agent.host.network_news import KIND, NetworkNews, NetworkProblem
from agent.model.event import EventDraft

log = logging.getLogger(__name__)
_WATCHER = "links"
_DROP_INS = (
    "find the program that does it and have it leave these links alone (docs/host.md has what "
    "systemd-networkd and NetworkManager need)"
)


class TapTelling:
    """One a network."""

    def __init__(self, news: NetworkNews) -> None:
        self._news = news

    def found(
        self,
        repaired: Mapping[str, Sequence[str]],
        lost: Mapping[str, str],
        route: KernelRoute | None,
        wanted: Wanted,
    ) -> None:
        """`repaired`: link → what was wrong; `lost`: taps that are gone; `route`: another's."""
        for link, faults in sorted(repaired.items()):
            bridge = link == wanted.bridge
            what = f"{'bridge' if bridge else 'tap'} {link}: {', '.join(faults)}; put back"
            log.warning("a link was changed; it was put back", extra={"link": link, "why": what})
            enclave = None if bridge else enclave_of(link)
            draft = EventDraft(
                kind=KIND, enclave=enclave, from_="changed", to="repaired", reason=what
            )
            self._news.repaired("link", draft)
        problems = {f"tap:{name}": _lost(name) for name in lost}
        if route is not None:
            problems["subnet"] = _subnet_taken(route, wanted)
        self._news.show(_WATCHER, problems)

    def failed(self, error: str) -> None:
        """It could not be put back; it is tried again every second."""
        problem = NetworkProblem(
            code="network_unavailable",
            severity="error",
            detail=f"the guests' network is not in order and cannot be put back: {error}",
            mend=f"mend what the detail says; it is tried again every second; {_DROP_INS}",
        )
        self._news.show(_WATCHER, {"links": problem})


def _lost(name: str) -> NetworkProblem:
    enclave = enclave_of(name)
    return NetworkProblem(
        code="tap_lost",
        severity="error",
        detail=f"the tap {name} was deleted: nothing reaches enclave {enclave} any more, and its "
        "QEMU cannot be given another",
        mend="`enclave-agent relaunch NAME` of its deployment, or stop and start it: a new VM has "
        f"a new tap; {_DROP_INS}",
    )


def _subnet_taken(route: KernelRoute, wanted: Wanted) -> NetworkProblem:
    where = f" on {route.dev}" if route.dev else ""
    return NetworkProblem(
        code="subnet_taken",
        severity="error",
        detail=f"this host routes {route.network}{where}, which is inside network.subnet "
        f"{wanted.subnet}: packets to those guests go there instead of to {wanted.bridge}",
        mend="take that route or address away, or give one of the two another subnet",
    )
