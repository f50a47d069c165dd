"""Whether a SEV-SNP report says what it must: one check a demand, passed or not. Pure."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator

from agent.attestation.claims import SnpClaims
from agent.attestation.expected import Expected
from agent.attestation.policy_snp_tcb import check_firmware, check_tcbs
from agent.attestation.port import Check
from agent.config import SignerRule, SnpConfig


def check_snp(
    claims: SnpClaims,
    config: SnpConfig,
    expected: Expected,
    now: dt.datetime,
    *,
    unnamed_keys: bool = False,
) -> tuple[Check, ...]:
    """Every check; what was proved on the way to the claims is told too. `unnamed_keys`: an ID key
    or author key that neither the configuration nor the release names passes.
    """
    return (
        *_origin(claims, config, now),
        *_launch(claims, config),
        *_platform(claims, config),
        *check_tcbs(claims, config),
        *check_firmware(claims, config),
        *_pins(claims, config, expected, unnamed_keys=unnamed_keys),
    )


def _origin(claims: SnpClaims, config: SnpConfig, now: dt.datetime) -> Iterator[Check]:
    report = claims.report
    by = f" of {claims.provider}" if claims.provider else ""
    yield Check(
        code="snp_signature",
        passed=True,
        detail=f"version {report.version}, {claims.product}, signed by a {report.signer.name}{by} "
        f"under the root {claims.root_spki_sha256}; TCB and chip agree with its certificate",
    )
    yield Check(
        code="snp_validity",
        passed=now <= claims.valid_until,
        detail=f"what vouches for it is valid until {claims.valid_until:%Y-%m-%d %H:%M} UTC",
    )
    yield _revocation(claims, config)
    yield Check(
        code="snp_signer",
        passed=config.signer in (SignerRule.ANY, report.signer.value),
        detail=f"signed by a {report.signer.name}, allowed: {config.signer}",
    )


def _revocation(claims: SnpClaims, config: SnpConfig) -> Check:
    """By default a current list is required once there was one: none can be made to vanish."""
    crl = claims.crl
    if crl is None:
        detail, passed = "not checked: no revocation list came, and none is kept", False
    else:
        named = f"AMD's revocation list {crl.number} of {crl.this_update:%Y-%m-%d}"
        passed = claims.revocation_checked
        detail = f"no certificate is on {named}"
        if not passed:
            detail = f"not checked: {named} was to be renewed by {crl.next_update:%Y-%m-%d %H:%M}"
    required = crl is not None if config.require_crl is None else config.require_crl
    return Check(
        code="snp_revocation",
        passed=passed or not required,
        detail=detail,
        checked=passed,
    )


def _launch(claims: SnpClaims, config: SnpConfig) -> Iterator[Check]:
    """What was fixed when the guest was launched."""
    report, policy = claims.report, claims.report.policy
    yield _forbidden("snp_debug", policy.debug, "debugging by the host")
    yield _forbidden("snp_migration_agent", policy.migration_agent, "a migration agent")
    yield _forbidden("snp_smt", policy.smt and not config.allow_smt, "SMT", policy.smt)
    yield _forbidden("snp_cxl", policy.cxl and not config.allow_cxl, "CXL memory", policy.cxl)
    yield Check(
        code="snp_single_socket",
        passed=policy.single_socket or not config.require_single_socket,
        detail=f"guest policy: {'one socket only' if policy.single_socket else 'any sockets'}",
    )
    yield Check(
        code="snp_vmpl",
        passed=report.vmpl <= config.max_vmpl,
        detail=f"asked for at VMPL {report.vmpl}, at most {config.max_vmpl}",
    )
    yield Check(
        code="snp_guest_svn",
        passed=report.guest_svn >= config.minimum_guest_svn,
        detail=f"guest SVN {report.guest_svn}, at least {config.minimum_guest_svn}",
    )


def _platform(claims: SnpClaims, config: SnpConfig) -> Iterator[Check]:
    """What the host's firmware says of the platform."""
    report = claims.report
    hiding = report.platform.ciphertext_hiding
    yield Check(
        code="snp_ciphertext_hiding",
        passed=hiding or not config.require_ciphertext_hiding,
        detail=f"ciphertext hiding is {'on' if hiding else 'off'}",
    )
    checked = report.platform.alias_check_complete
    yield Check(
        code="snp_alias_check",
        passed=checked or not config.require_alias_check,
        detail=f"the memory's aliases were {'' if checked else 'not '}looked for",
    )


def _pins(
    claims: SnpClaims, config: SnpConfig, expected: Expected, *, unnamed_keys: bool
) -> Iterator[Check]:
    report = claims.report
    yield _equal("snp_measurement", "measurement", report.measurement, expected.snp_measurement)
    yield _equal("snp_host_data", "host data", report.host_data, expected.host_data)
    yield from _one_file(claims, expected)
    for name, found, pin, stated in (
        ("id_key_digest", report.id_key_digest, config.id_key_digest, expected.id_key_digest),
        (
            "author_key_digest",
            report.author_key_digest,
            config.author_key_digest,
            expected.author_key_digest,
        ),
    ):
        if stated is not None:
            yield _equal(f"snp_release_{name}", name, found, stated)
        if pin is not None:
            yield _equal(f"snp_{name}", name, found, bytes.fromhex(pin))
        elif stated is None:
            yield _no_key(name, found, allowed=unnamed_keys)
    if expected.report_data is not None:
        yield _equal("snp_report_data", "report data", report.report_data, expected.report_data)


def _no_key(name: str, found: bytes, *, allowed: bool) -> Check:
    """Who signed a launch may have said anything of it: only who is known may have signed."""
    signed = any(found)
    detail = f"{name}: none"
    if signed:
        detail = f"{name}: {found.hex()}, which neither the policy pins nor the release states"
    return Check(code=f"snp_{name}", passed=allowed or not signed, detail=detail)


def _one_file(claims: SnpClaims, expected: Expected) -> Iterator[Check]:
    """What a launch in one measured file fixes beyond its measurement and the host data."""
    report = claims.report
    if expected.snp_policy is not None:
        found, wanted = report.policy.raw, expected.snp_policy
        detail = f"guest policy {found:#x}, of the release {wanted:#x}"
        yield Check(code="snp_release_policy", passed=found == wanted, detail=detail)
    if expected.guest_svn is not None:
        detail = f"guest SVN {report.guest_svn}, of the release {expected.guest_svn}"
        same = report.guest_svn == expected.guest_svn
        yield Check(code="snp_release_guest_svn", passed=same, detail=detail)


def _forbidden(code: str, wrong: bool, what: str, allowed: bool | None = None) -> Check:
    allows = wrong if allowed is None else allowed
    verb = "allows" if allows else "forbids"
    return Check(code=code, passed=not wrong, detail=f"guest policy: {verb} {what}")


def _equal(code: str, what: str, found: bytes, wanted: bytes | None) -> Check:
    if wanted is None:
        return Check(code=code, passed=False, detail=f"{what}: none is known to compare it with")
    same = found == wanted
    detail = f"{what}: {found.hex()}" + ("" if same else f", expected {wanted.hex()}")
    return Check(code=code, passed=same, detail=detail)
