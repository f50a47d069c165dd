"""Whether a SEV-SNP platform's firmware and microcode are new enough: one check a demand. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from agent.attestation.claims import SnpClaims
from agent.attestation.port import Check, not_checked
from agent.attestation.snp_floors import endorsed_floors
from agent.attestation.snp_tcb import Product, Tcb
from agent.config import SnpConfig, SnpFloors, SnpMinimum, TcbMinimum

_NO_FLOORS: Mapping[str, int] = {}


def check_tcbs(claims: SnpClaims, config: SnpConfig) -> Iterator[Check]:
    """Each TCB at least. The committed one has no floor: it is what might come back, and whether
    that matters is `require_committed`'s to say.
    """
    floors, source = floors_of(claims.product, claims.report.line, config)
    yield _tcb("current", claims.current, config.current_tcb, floors, source)
    yield _tcb("reported", claims.reported, config.reported_tcb, floors, source)
    yield _tcb("committed", claims.committed, config.committed_tcb, _NO_FLOORS, source)
    yield _tcb("launch", claims.launch, config.launch_tcb, floors, source)
    if config.minimum is SnpFloors.ENDORSED:
        yield from _microcode(claims)
    if isinstance(config.minimum, SnpMinimum):
        yield from _mitigations(claims, config.minimum)


def check_firmware(claims: SnpClaims, config: SnpConfig) -> Iterator[Check]:
    """The firmware's version: both, since the committed one may come back."""
    report = claims.report
    major, _, minor = config.minimum_abi.partition(".")
    current, committed = report.current_firmware, report.committed_firmware
    yield Check(
        code="snp_abi",
        passed=all((v.major, v.minor) >= (int(major), int(minor)) for v in (current, committed)),
        detail=f"firmware {current}, committed {committed}, at least {config.minimum_abi}",
    )
    final = current == committed and report.current_tcb == report.committed_tcb
    told = "all of it is committed" if final else "it is provisional, and can be rolled back"
    yield Check(
        code="snp_committed",
        passed=final or not config.require_committed,
        detail=f"firmware {current}, TCB {claims.current}: {told}",
    )


def floors_of(
    product: Product, line: tuple[int, int, int] | None, config: SnpConfig
) -> tuple[Mapping[str, int], str]:
    """The floors of a processor by part, and who says so."""
    if isinstance(config.minimum, SnpMinimum):
        return msgspec.structs.asdict(config.minimum), "attestation.snp.minimum"
    if config.minimum is SnpFloors.NONE:
        return _NO_FLOORS, ""
    floors = endorsed_floors(product, line)
    return floors.parts(), floors.source


def below(tcb: Tcb, minimum: TcbMinimum, floors: Mapping[str, int], source: str) -> list[str]:
    """What of it is too low, in words. A part that this product does not have is asked nothing."""
    configured: dict[str, int] = msgspec.structs.asdict(minimum)
    low = []
    for part, value in tcb.parts().items():
        least, floor = configured[part], floors.get(part, 0)
        if value < max(least, floor):
            by = f" ({source})" if floor > least else ""
            low.append(f"{part} {value}, at least {max(least, floor)}{by}")
    return low


def _tcb(
    which: str, tcb: Tcb, minimum: TcbMinimum, floors: Mapping[str, int], source: str
) -> Check:
    low = below(tcb, minimum, floors, source)
    return Check(
        code=f"snp_{which}_tcb", passed=not low, detail=f"{which} TCB: {'; '.join(low) or tcb}"
    )


def _microcode(claims: SnpClaims) -> Iterator[Check]:
    """Said where the endorsed floors have none to compare it with."""
    line = claims.report.line
    if endorsed_floors(claims.product, line).microcode is not None:
        return
    known = "-".join(f"{one:02X}h" for one in line) if line else "not in a report of version 2"
    yield not_checked(
        "snp_microcode_not_checked",
        f"microcode {claims.current.microcode} was not compared: no floor is known for "
        f"this line of {claims.product} (family, model, stepping: {known})",
    )


def _mitigations(claims: SnpClaims, minimum: SnpMinimum) -> Iterator[Check]:
    report = claims.report
    for which, found, wanted in (
        ("launch", report.launch_mitigations, minimum.launch_mitigations),
        ("current", report.current_mitigations, minimum.current_mitigations),
    ):
        missing = wanted & ~(found or 0)
        shown = "none in this version of the report" if found is None else f"{found:#x}"
        yield Check(
            code=f"snp_{which}_mitigations",
            passed=not missing,
            detail=f"mitigations ({which}): {shown}"
            + (
                f"; {missing:#x} of the required {wanted:#x} are not among them" if missing else ""
            ),
        )
