"""Which processor evidence was refused for: a person may say that it is this machine's. Pure.

Of each deployment the newest evidence counts. It is kept in the store: the enclave that gave the
evidence may be gone, and the agent that judged it, too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from agent.attestation.origin import Origin
from agent.attestation.port import Check, ChipNotAcceptedError
from agent.attestation.recognition import CHIP_ID
from agent.model.identity import RefusedChip
from agent.model.ids import DeploymentName


def refused_chip(
    origin: Origin, checks: Sequence[Check], machine: str, deployment: DeploymentName
) -> RefusedChip | None:
    """What is to be remembered of this evidence, by all its checks; None: nothing."""
    failed = [check.code for check in checks if not check.passed]
    if origin.chip is None or CHIP_ID not in failed:
        return None
    return RefusedChip(
        machine=machine,
        deployment=deployment,
        source=origin.chip.source,
        chip=origin.chip.value,
        otherwise=tuple(code for code in failed if code != CHIP_ID),
    )


def rows_to_change(
    known: Sequence[RefusedChip], newest: RefusedChip | None, deployment: DeploymentName
) -> tuple[list[RefusedChip], list[RefusedChip]]:
    """What to put and what to drop: `newest` is what a deployment's newest evidence says."""
    before = next((one for one in known if one.deployment == deployment), None)
    if newest is None:
        return [], [before] if before is not None else []
    return [newest] if newest != before else [], []


def chip_to_accept(
    known: Sequence[RefusedChip],
    machine: str,
    deployment: DeploymentName,
    own_chips: Collection[str] | None,
) -> RefusedChip:
    """The one that a person may accept for this deployment. `own_chips`: of this host's own
    processors, as they say themselves; None where they do not. Raises ChipNotAcceptedError.
    """
    mine = (one for one in known if (one.machine, one.deployment) == (machine, deployment))
    row = next(mine, None)
    if row is None:
        raise ChipNotAcceptedError(f"no evidence of {deployment} was refused for its processor")
    if row.otherwise:
        codes = ", ".join(row.otherwise)
        remedy = f"`enclave-agent attest {deployment}` shows them"
        raise ChipNotAcceptedError(
            f"its evidence is not good for other reasons, too: {codes}; {remedy}"
        )
    if own_chips is not None:
        told = f"this host's own processors are {', '.join(sorted(own_chips))}"
        raise ChipNotAcceptedError(
            f"no word outweighs the processor's own: {row.source} {row.chip}: {told}"
        )
    return row
