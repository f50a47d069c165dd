"""`enclave-agent lease grant|show|release`: promises of capacity."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from agent.cli.completion import DEPLOYMENT
from agent.cli.options import STRATEGIES, Output, output, result
from agent.cli.session import session

if TYPE_CHECKING:
    from agent.wire.answers import Lease


@click.group()
def lease() -> None:
    """Promise capacity until a time, and give it back."""


@lease.command()
@click.argument("name", required=False, type=DEPLOYMENT)
@click.option("--tag", metavar="T", help="Of an update to this release. [the same]")
@click.option("--gpus", type=click.IntRange(0), metavar="N", help="Without NAME: so many GPUs.")
@click.option("--memory-mib", type=click.IntRange(1), metavar="N", help="Without NAME.")
@click.option("--vcpus", type=click.IntRange(1), metavar="N", help="Without NAME.")
@click.option("--strategy", type=STRATEGIES, help="Insist on it. [what fits]")
@click.option("--ttl", "ttl_s", type=click.IntRange(1), default=600, metavar="S", help="[600]")
@result
def grant(
    name: str | None,
    output: Output,
    *,
    tag: str | None,
    gpus: int | None,
    memory_mib: int | None,
    vcpus: int | None,
    strategy: str | None,
    ttl_s: int,
) -> None:
    """Reserve what an update of NAME takes, or an enclave of this size.

    It is spent by `deploy` or `relaunch` with --lease.
    """
    from msgspec import UNSET

    from agent.cli.screen import tell
    from agent.model.reasons import Strategy
    from agent.wire.answers import Lease
    from agent.wire.requests import DemandRequest, LeaseRequest

    demand = None
    if memory_mib is not None and vcpus is not None:
        demand = DemandRequest(gpus=gpus or 0, memory_mib=memory_mib, vcpus=vcpus)
    sized = (gpus, memory_mib, vcpus) != (None, None, None)
    if (name is None) is not sized or (sized and demand is None):
        raise click.UsageError("either NAME, or --memory-mib and --vcpus")
    body = LeaseRequest(
        deployment=name or UNSET,
        tag=tag or UNSET,
        demand=demand or UNSET,
        strategy=Strategy(strategy) if strategy else UNSET,
        ttl_s=ttl_s,
    )
    made = session().client().send("POST", "/v1/leases", body, Lease)
    tell(made, output, _told(made))


@lease.command()
@click.argument("lease_id", metavar="ID")
@output
def show(lease_id: str, output: Output) -> None:
    """Show what a lease promises, and until when."""
    from agent.cli.client import segment
    from agent.cli.screen import tell
    from agent.wire.answers import Lease

    found = session().client().read(f"/v1/leases/{segment(lease_id)}", Lease)
    tell(found, output, _told(found))


@lease.command()
@click.argument("lease_id", metavar="ID")
def release(lease_id: str) -> None:
    """Give the capacity back before its time."""
    from agent.cli.client import segment
    from agent.cli.screen import say

    session().client().order("DELETE", f"/v1/leases/{segment(lease_id)}")
    say(f"lease {lease_id} is given back")


def _told(one: Lease) -> str:
    from agent.cli.text import moment_ago

    what = [f"{one.memory_mib} MiB", f"{one.vcpus} vCPUs", *one.gpus]
    return (
        f"lease {one.id}: {', '.join(what)} ({one.strategy}), until {moment_ago(one.expires_at)}"
    )
