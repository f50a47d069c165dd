"""What `enclave-agent attest` and `scripts/verify-evidence` show: a verdict, check by check."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from agent.wire.answers import AttestationCheck, AttestationVerdict, CollateralView


def page(
    verdict: AttestationVerdict,
    before: Sequence[tuple[str, str]],
    after: Sequence[tuple[str, str]],
) -> RenderableType:
    """The verdict between what else is known, then every check, then what vouched for it."""
    from rich.console import Group

    from agent.cli.screen import pairs, table
    from agent.cli.tables import Column, prose
    from agent.cli.text import safe

    head = pairs()
    for name, value in before:
        head.add_row(name, value)
    if verdict.simulated:
        head.add_row("", "SIMULATED — NOT CONFIDENTIAL")
    head.add_row("verdict", "attested" if verdict.accepted else "NOT ATTESTED")
    left_out = [check.code for check in verdict.checks if check.checked is False]
    head.add_row("left out", ", ".join(left_out) or "nothing of what is listed")
    for name, value in after:
        head.add_row(name, value, whole=True)
    checks = table(Column("CHECK"), Column(""), prose("DETAIL"))
    for check in verdict.checks:
        checks.add_row(check.code, _word(check), safe(check.detail))
    for check in verdict.stricter or ():
        checks.add_row(check.code, "stricter", safe(check.detail))
    parts: list[RenderableType] = [head, "", checks]
    if verdict.collateral:
        parts += ["", _collateral(verdict.collateral)]
    return Group(*parts)


def _word(check: AttestationCheck) -> str:
    """What was not looked at is never told as good."""
    if not check.passed:
        return "FAILED"
    return "not checked" if check.checked is False else "ok"


def _collateral(collateral: Sequence[CollateralView]) -> RenderableType:
    from agent.cli.screen import table
    from agent.cli.tables import Column, prose
    from agent.cli.text import safe

    listed = table(Column("COLLATERAL"), prose(""), Column("OF"), Column("UNTIL"))
    for one in collateral:
        dates = (f"{at:%Y-%m-%d}" if at is not None else "-" for at in (one.issued, one.until))
        listed.add_row(one.kind, safe(one.name), *dates)
    return listed
