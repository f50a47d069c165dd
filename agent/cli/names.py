"""What a person types for a name, made whole: short BDFs, the beginning of an id; and near misses.

A word that means two things is refused with both, never guessed.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import msgspec

from agent.cli.exits import Exit, Failure

if TYPE_CHECKING:
    from agent.cli.client import Client
    from agent.wire.views import DeploymentView, EnclaveView

_LISTED = 8
_NEAR = 0.6  # of difflib's ratio
_SHORTEST_ID = 3


class _Named(msgspec.Struct):
    name: str


class _Names(msgspec.Struct):
    deployments: list[_Named]


class _Device(msgspec.Struct):
    bdf: str


class _Devices(msgspec.Struct):
    gpus: list[_Device]
    switches: list[_Device]


def deployment_names(client: Client) -> list[str]:
    """Of all deployments, sorted."""
    return [one.name for one in client.read("/v1/deployments", _Names).deployments]


def device_bdfs(client: Client) -> list[str]:
    """Of all GPUs and switches."""
    found = client.read("/v1/inventory", _Devices)
    return [one.bdf for one in (*found.gpus, *found.switches)]


def hint(word: str, known: Sequence[str], what: str) -> list[str]:
    """A line that helps who mistyped: the nearest, or else what there is."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=3, cutoff=_NEAR)
    near = [by_lower[one] for one in close]
    if near:
        return [f"did you mean {' or '.join(near)}?"]
    if not known:
        return [f"there are no {what}"]
    more = len(known) - _LISTED
    return [f"{what}: {', '.join(known[:_LISTED])}" + (f" and {more} more" if more > 0 else "")]


def whole_bdf(client: Client, text: str) -> str:
    """`18:00.0`, `18:00` or `0000:18:00.0` as the host calls it. Raises Failure UNKNOWN_NAME."""
    known = device_bdfs(client)
    wanted = text.lower()
    if wanted in known:
        return wanted
    endings = {one for one in known if wanted and one.endswith((f":{wanted}", f":{wanted}.0"))}
    return _only(text, endings, known, "GPUs")


def chosen_enclave(client: Client, text: str) -> tuple[DeploymentView, EnclaveView | None]:
    """A deployment by its name, or one of its enclaves by the beginning of its id.

    A name goes before an id. The enclave is None where a deployment was named.
    """
    from agent.cli.client import segment
    from agent.wire.answers import Deployments
    from agent.wire.views import DeploymentView

    try:
        return client.read(f"/v1/deployments/{segment(text)}", DeploymentView), None
    except Failure as failure:
        if failure.exit_code != Exit.UNKNOWN_NAME or len(text) < _SHORTEST_ID:
            raise
        deployments = client.read("/v1/deployments", Deployments).deployments
        found = [
            (one, enclave)
            for one in deployments
            for enclave in one.enclaves
            if enclave.id.startswith(text)
        ]
        if not found:
            raise
        _only(text, {enclave.id for _, enclave in found}, (), "enclaves")
        return found[0]


def whole_id(text: str, known: Collection[str], what: str) -> str:
    """The one id that begins so."""
    return _only(text, {one for one in known if one.startswith(text)}, sorted(known), what)


def _only(text: str, found: Collection[str], known: Sequence[str], what: str) -> str:
    if len(found) > 1:
        several = ", ".join(sorted(found)[:_LISTED])
        raise Failure(Exit.UNKNOWN_NAME, f"'{text[:40]}' may be one of {several}: say more of it")
    for one in found:
        return one
    raise Failure(
        Exit.UNKNOWN_NAME, f"there is nothing called '{text[:40]}'", hint(text, known, what)
    )
