"""What must be refused, and by which code: one row an attack, a defect or a breach of policy."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.attestation.collateral import Endorsements
from agent.attestation.expected import Expected
from agent.attestation.port import Verdict
from agent.attestation.roots import Trust
from agent.attestation.snp_tcb import Product, Signer
from agent.config import AttestationConfig, SignerRule, SnpConfig, SnpMinimum, TcbMinimum
from tests.fakes.attested_guest import Guest, devices_section, keys_section
from tests.fakes.snp_chain import (
    EXPIRED,
    FUTURE,
    MEASUREMENT,
    NOW,
    FakeAmd,
    der_integer,
    tcb_bytes,
)

GOOD = Guest()
MILAN, GENOA, TURIN = (FakeAmd(product) for product in Product)
VLEK = FakeAmd(signer=Signer.VLEK)
ANY = AttestationConfig(snp=SnpConfig(signer=SignerRule.ANY))
OTHER = "ab" * 32
SECOND = dt.timedelta(seconds=1)


def chip(**changes: Any) -> Guest:
    return GOOD.but(amd=FakeAmd(**changes))


def of(amd: FakeAmd, **changes: Any) -> Guest:
    return GOOD.but(amd=amd, **changes)


def says(**fields: int | bytes) -> Guest:
    """The same chip; the report says something else."""
    return GOOD.but(fields=fields)


def asks(**snp: Any) -> Guest:
    """The policy asks for more."""
    return GOOD.but(config=AttestationConfig(snp=SnpConfig(**snp)))


def expects(**changes: Any) -> Guest:
    return GOOD.but(expected=Expected(**{"snp_measurement": MEASUREMENT, **changes}))


def lists(crl: Callable[[], bytes], amd: FakeAmd = MILAN, **changes: Any) -> Guest:
    """A revocation list beside the report."""
    return of(amd, crls=lambda: (crl(),), **changes)


def holds(came: Callable[[], bytes] | None, held: Callable[[], bytes], **changes: Any) -> Guest:
    """The agent has a list; another may have come with the evidence."""
    return GOOD.but(crls=(lambda: (came(),)) if came else tuple, held=lambda: (held(),), **changes)


def named(amd: FakeAmd) -> Guest:
    """Another root is the one that is believed."""
    return GOOD.but(trust=lambda: amd.trust)


def given(source: FakeAmd = MILAN, **changes: Callable[[Endorsements], bytes]) -> Guest:
    """Other certificates beside the report: each made from the chip's own."""

    def make() -> Endorsements:
        own = source.endorsements
        return replace(own, **{part: change(own) for part, change in changes.items()})

    return GOOD.but(endorsements=make)


def signature(change: Callable[[bytearray], None]) -> Guest:
    def spoil(report: bytes) -> bytes:
        made = bytearray(report)
        change(made)
        return bytes(made)

    return GOOD.but(spoil=spoil)


def flip(at: int) -> Guest:
    def change(report: bytearray) -> None:
        report[at] ^= 1

    return signature(change)


def unsign(report: bytearray) -> None:
    report[0x2A0:0x330] = bytes(144)


def ext(oid: str, value: bytes | None, **more: Any) -> Guest:
    return chip(extensions=((oid, value),), **more)


CHAIN: dict[str, tuple[str, Guest]] = {
    "a root that nobody named": ("root_unknown", GOOD.but(trust=Trust)),
    "a root of another installation": (
        "root_unknown",
        GOOD.but(trust=lambda: FakeAmd(root="r2").trust),
    ),
    "an ARK of other bytes": ("certificate_malformed", given(ark=lambda _: b"\x30\x00")),
    "an ARK that did not sign itself": ("certificate_signature", chip(ark_signed_by="r2")),
    "an ASK in the place of the ARK": (
        "root_unknown",
        given(ark=lambda own: own.ask),
    ),
    "an ASK of another root": (
        "certificate_signature",
        chip(ask_signed_by="r2"),
    ),
    "an ASK that is no authority": ("certificate_malformed", chip(ask_is_ca=False)),
    "an ARK that may issue no authority": ("certificate_malformed", chip(ark_path_length=0)),
    "an ASK that may not sign certificates": (
        "certificate_malformed",
        chip(ask_usage=(False, True)),
    ),
    "an ARK that may not sign certificates": (
        "certificate_malformed",
        chip(ark_usage=(False, True)),
    ),
    "a leaf that is an authority's": ("certificate_malformed", chip(leaf_is_ca=True)),
    "a VLEK that is an authority's": (
        "certificate_malformed",
        chip(signer=Signer.VLEK, leaf_is_ca=True),
    ),
    "a leaf that may not sign": ("certificate_malformed", chip(leaf_usage=False)),
    "an ASK with a short key": ("certificate_malformed", chip(ask_bits=2048)),
    "a leaf of another ASK": ("certificate_signature", chip(leaf_signed_by="r2")),
    "a leaf that the root signed": ("certificate_signature", chip(leaf_signed_by="ark")),
    "a leaf on another curve": ("certificate_malformed", chip(leaf_curve=ec.SECP256R1)),
    "a leaf signed with a short salt": ("certificate_malformed", chip(salt=20)),
    "a leaf signed over SHA-256": ("certificate_malformed", chip(digest=hashes.SHA256, salt=32)),
    "a leaf with something after it": (
        "certificate_malformed",
        given(leaf=lambda own: own.leaf + b"\0"),
    ),
    "a leaf that is cut off": ("certificate_malformed", given(leaf=lambda own: own.leaf[:-1])),
    "an ARK under another name": ("certificate_name", chip(ark_name="ARK-Genoa")),
    "an ASK under another name": ("certificate_name", chip(ask_name="SEV-Genoa")),
    "the ASK of VLEKs for a VCEK": ("certificate_name", chip(ask_name="SEV-VLEK-Milan")),
    "the ASK of VCEKs for a VLEK": (
        "certificate_name",
        chip(signer=Signer.VLEK, ask_name="SEV-Milan"),
    ),
    "a VLEK where a VCEK signed": ("certificate_name", given(VLEK)),
    "a leaf under another name": ("certificate_name", chip(leaf_name="SEV-VLEK")),
    "an expired ARK": ("certificate_expired", chip(ark_life=EXPIRED)),
    "an expired ASK": ("certificate_expired", chip(ask_life=EXPIRED)),
    "an expired VCEK": ("certificate_expired", chip(leaf_life=EXPIRED)),
    "an expired VLEK": ("certificate_expired", chip(signer=Signer.VLEK, leaf_life=EXPIRED)),
    "an ARK of the future": ("certificate_not_yet_valid", chip(ark_life=FUTURE)),
    "an ASK of the future": ("certificate_not_yet_valid", chip(ask_life=FUTURE)),
    "a VCEK of the future": ("certificate_not_yet_valid", chip(leaf_life=FUTURE)),
    "a clock before all of it": (
        "certificate_not_yet_valid",
        GOOD.but(now=NOW - dt.timedelta(days=4000)),
    ),
    "a simulated root in production": ("genuine_root", GOOD.but(allow_simulated=False)),
}

REVOCATION: dict[str, tuple[str, Guest]] = {
    "a revoked ASK": ("certificate_revoked", lists(lambda: MILAN.crl(5, 0x10001))),
    "a revoked VLEK": ("certificate_revoked", lists(lambda: VLEK.crl(0x77), VLEK)),
    "the revoked ASK of a VLEK": ("certificate_revoked", lists(lambda: VLEK.crl(0x10001), VLEK)),
    "a newer list that revokes, beside an older one": (
        "certificate_revoked",
        holds(lambda: MILAN.crl(5, number=6), lambda: MILAN.crl(0x10001, number=8)),
    ),
    "a list that is over, and revokes": (
        "certificate_revoked",
        holds(None, lambda: MILAN.crl(0x10001, end=NOW - SECOND)),
    ),
    "a newer list of a later day that revokes": (
        "certificate_revoked",
        holds(
            lambda: MILAN.crl(begin=NOW - dt.timedelta(days=3)),
            lambda: MILAN.crl(0x10001, begin=NOW - dt.timedelta(days=2)),
        ),
    ),
    "a list that was held once, and is over": (
        "snp_revocation",
        holds(None, lambda: MILAN.crl(end=NOW - SECOND)),
    ),
    "a list that came, older than one that is over": (
        "snp_revocation",
        holds(lambda: MILAN.crl(number=6), lambda: MILAN.crl(number=8, end=NOW - SECOND)),
    ),
    "a list of the future that is held": (
        "snp_revocation",
        holds(None, lambda: MILAN.crl(begin=NOW + SECOND)),
    ),
    "a list of another root": ("crl_issuer", lists(lambda: MILAN.crl(issuer="ARK-Genoa"))),
    "a list with a forged signature": ("crl_signature", lists(lambda: MILAN.crl(signed_by="r2"))),
    "a list to be renewed": ("crl_expired", lists(lambda: MILAN.crl(end=NOW - SECOND))),
    "a list of the future": ("crl_not_yet_valid", lists(lambda: MILAN.crl(begin=NOW + SECOND))),
    "a list of a key that may sign none": (
        "crl_issuer",
        lists(MILAN.crl, FakeAmd(ark_usage=(True, False))),
    ),
    "a demand not understood": ("crl_malformed", lists(lambda: MILAN.crl(critical=True))),
    "a list that is none": ("crl_malformed", lists(lambda: b"\x30\x03\x02\x01\x00")),
    "no list where one is required": ("snp_revocation", asks(require_crl=True)),
}

REPORT: dict[str, tuple[str, Guest]] = {
    "a report that is cut off": ("report_length", GOOD.but(spoil=lambda raw: raw[:-1])),
    "a report with a byte more": ("report_length", GOOD.but(spoil=lambda raw: raw + b"\0")),
    "version 0": ("report_version", says(version=0)),
    "version 1": ("report_version", says(version=1)),
    "version 6": ("report_version", says(version=6)),
    "no signature algorithm": ("report_algorithm", says(algorithm=0)),
    "another signature algorithm": ("report_algorithm", says(algorithm=2)),
    "no signing key": ("report_signer", says(signer=7 << 2)),
    "a signing key without a meaning": ("report_signer", says(signer=2 << 2)),
    "reserved bits of the signer": ("report_reserved", says(signer=1 << 5)),
    "a masked chip key": ("chip_key_masked", says(signer=1 << 1)),
    "the policy's bit that must be one": ("report_reserved", says(policy=0x10000)),
    "the policy's bits that must be zero": ("report_reserved", says(policy=0x30000 | 1 << 26)),
    "the policy's last bit": ("report_reserved", says(policy=0x30000 | 1 << 63)),
    **{
        f"bit {bit} of the platform before it had a meaning (version {version})": (
            "report_reserved",
            says(version=version, platform=1 << bit),
        )
        for version, bit in ((2, 6), (2, 7), (3, 6), (4, 6), (2, 8), (3, 8), (4, 8), (5, 8))
    },
    "the platform's last bit": ("report_reserved", says(platform=1 << 63)),
    "reserved bytes at 4c": ("report_reserved", says(reserved_4c=1)),
    "reserved bytes at 18b": ("report_reserved", says(reserved_18b=1)),
    "reserved bytes at 1eb": ("report_reserved", says(reserved_1eb=1)),
    "reserved bytes at 1ef": ("report_reserved", says(reserved_1ef=1)),
    "mitigations before version 5": ("report_reserved", says(launch_mitigations=1)),
    "mitigations in version 4": ("report_reserved", says(version=4, current_mitigations=1)),
    "reserved bytes of version 5": ("report_reserved", says(version=5, reserved_208=1)),
    "a product in version 2": ("report_reserved", says(version=2, family=0x19)),
    "reserved bytes after the signature": ("report_reserved", flip(0x330)),
    "the last byte": ("report_reserved", flip(1183)),
    "an unknown family": ("product_unknown", says(family=0x1B)),
    "an unknown model": ("product_unknown", says(model=0x20)),
    "another product than the root's": ("product_mismatch", says(model=0x11)),
    "reserved TCB bytes": ("report_reserved", says(reported_tcb=b"\4\1\1\0\0\0\x18\xdb")),
    "reserved TCB bytes at launch": ("report_reserved", says(launch_tcb=b"\0\0\0\0\0\1\0\0")),
    "reserved TCB bytes of a Turin": (
        "report_reserved",
        of(TURIN, fields={"current_tcb": b"\0\0\0\0\1\0\0\0"}),
    ),
    "another R": ("report_signature", flip(0x2A0)),
    "another S": ("report_signature", flip(0x2E8)),
    "an R beyond the curve": ("report_signature", flip(0x2A0 + 71)),
    "no signature": ("report_signature", signature(unsign)),
    "a measurement changed afterwards": ("report_signature", flip(0x90)),
    "report data changed afterwards": ("report_signature", flip(0x50)),
}

TCB_AND_CHIP: dict[str, tuple[str, Guest]] = {
    **{
        f"a certificate for another {part} ({product})": (
            "tcb_mismatch",
            of(FakeAmd(product), fields={"reported_tcb": tcb_bytes(product, **{part: 3})}),
        )
        for product in Product
        for part in ("bootloader", "tee", "snp", "microcode")
    },
    "a certificate for another fmc (Turin)": (
        "tcb_mismatch",
        of(TURIN, fields={"reported_tcb": tcb_bytes(Product.TURIN, fmc=3)}),
    ),
    "a VLEK for another TCB": (
        "tcb_mismatch",
        of(VLEK, fields={"reported_tcb": tcb_bytes(Product.MILAN, snp=25)}),
    ),
    "a certificate without a TCB": ("certificate_extension", ext("3.3", None)),
    "a TCB that is no number": ("certificate_extension", ext("3.1", b"\x04\x01\x04")),
    "a TCB in two bytes": ("certificate_extension", ext("3.1", b"\x02\x02\x00\x04")),
    "a Turin without its fmc": ("certificate_extension", ext("3.9", None, product=Product.TURIN)),
    "another chip": ("hardware_id_mismatch", says(chip_id=b"another".ljust(64, b"!"))),
    "a hidden chip id": ("hardware_id_mismatch", says(chip_id=bytes(64))),
    "another Turin": ("hardware_id_mismatch", of(TURIN, fields={"chip_id": b"\1" * 8})),
    "a Turin with more of an id": (
        "hardware_id_mismatch",
        of(TURIN, fields={"chip_id": TURIN.chip_id + b"\1"}),
    ),
    "a certificate without a chip": ("certificate_extension", ext("4", None)),
    "a Turin's id on a Milan": ("certificate_extension", ext("4", bytes(8))),
    "a Milan's id on a Turin": (
        "certificate_extension",
        ext("4", bytes(64), product=Product.TURIN),
    ),
    "a VLEK that names a chip": (
        "certificate_extension",
        ext("4", MILAN.chip_id, signer=Signer.VLEK),
    ),
    "a certificate without a product": ("product_mismatch", ext("2", None)),
    "a certificate of another product": ("product_mismatch", ext("2", b"\x16\x05Genoa")),
    "a product that is no text": ("certificate_extension", ext("2", der_integer(1))),
}

POLICY: dict[str, tuple[str, Guest]] = {
    "debugging": ("snp_debug", says(policy=0x30000 | 1 << 19)),
    "a migration agent": ("snp_migration_agent", says(policy=0x30000 | 1 << 18)),
    "SMT": ("snp_smt", asks(allow_smt=False)),
    "CXL memory": ("snp_cxl", says(policy=0x30000 | 1 << 21)),
    "any sockets": ("snp_single_socket", asks(require_single_socket=True)),
    "no ciphertext hiding": ("snp_ciphertext_hiding", asks(require_ciphertext_hiding=True)),
    "no alias check": (
        "snp_alias_check",
        asks(require_alias_check=True).but(fields={"platform": 0x05}),
    ),
    "a lower privilege": ("snp_vmpl", says(vmpl=1)),
    "a report that the host asked for": ("snp_vmpl", says(vmpl=0xFFFFFFFF)),
    **{
        f"{named} whom nobody named": (code, says(**fields))
        for named, code, fields in (
            ("an ID key", "snp_id_key_digest", {"id_key_digest": b"\xab"}),
            ("an author's key", "snp_author_key_digest", {"author_key_digest": b"\xab"}),
        )
    },
    "an ID key of another release": (
        "snp_release_id_key_digest",
        expects(id_key_digest=b"\xab" * 48).but(fields={"id_key_digest": b"\xac" * 48}),
    ),
    "an author's key of another release": (
        "snp_release_author_key_digest",
        expects(author_key_digest=b"\xab" * 48),
    ),
    "a VLEK that nobody asked for": ("snp_signer", of(VLEK)),
    "firmware that could be rolled back": (
        "snp_committed",
        asks(require_committed=True).but(fields={"committed_firmware": bytes((20, 55, 1))}),
    ),
    "a TCB that could be rolled back": (
        "snp_committed",
        asks(require_committed=True).but(
            fields={"committed_tcb": tcb_bytes(Product.MILAN, snp=23)}
        ),
    ),
    "an SNP firmware below the endorsed floor": (
        "snp_launch_tcb",
        says(launch_tcb=tcb_bytes(Product.MILAN, snp=23)),
    ),
    "a TCB below the operator's own floor": (
        "snp_launch_tcb",
        asks(minimum=SnpMinimum(bootloader=4)).but(
            fields={"launch_tcb": tcb_bytes(Product.MILAN, bootloader=3)}
        ),
    ),
    "a mitigation that the launch had not": (
        "snp_launch_mitigations",
        asks(minimum=SnpMinimum(launch_mitigations=0b100)).but(
            fields={"version": 5, "launch_mitigations": 0b1011}
        ),
    ),
    "a mitigation that is not there now": (
        "snp_current_mitigations",
        asks(minimum=SnpMinimum(current_mitigations=1)).but(
            fields={"version": 5, "current_mitigations": 1 << 63}
        ),
    ),
    "mitigations of a report that has none": (
        "snp_current_mitigations",
        asks(minimum=SnpMinimum(current_mitigations=1)),
    ),
    "an old guest": ("snp_guest_svn", asks(minimum_guest_svn=1)),
    "an old ABI": ("snp_abi", asks(minimum_abi="1.56")),
    "an old ABI, by its major": ("snp_abi", asks(minimum_abi="2.0")),
    "an old ABI to fall back to": (
        "snp_abi",
        asks(minimum_abi="1.55").but(fields={"committed_firmware": bytes((9, 54, 1))}),
    ),
    "a VCEK where VLEKs are asked for": ("snp_signer", asks(signer=SignerRule.VLEK)),
    "a VLEK where VCEKs are asked for": ("snp_signer", asks(signer=SignerRule.VCEK).but(amd=VLEK)),
    **{
        f"a low {part}, {which}": (
            f"snp_{which}_tcb",
            asks(**{f"{which}_tcb": TcbMinimum(**{part: 220})}),
        )
        for which in ("current", "reported", "committed", "launch")
        for part in ("bootloader", "tee", "snp", "microcode")
    },
    "a low fmc": ("snp_launch_tcb", asks(launch_tcb=TcbMinimum(fmc=3)).but(amd=TURIN)),
    "a low TCB of the launch alone": (
        "snp_launch_tcb",
        asks(launch_tcb=TcbMinimum(snp=24)).but(
            fields={"launch_tcb": tcb_bytes(Product.MILAN, snp=23)}
        ),
    ),
    "another measurement": ("snp_measurement", expects(snp_measurement=bytes(48))),
    "a release without a measurement": ("snp_measurement", expects(snp_measurement=None)),
    "host data": ("snp_host_data", says(host_data=b"\1")),
    "other host data": ("snp_host_data", expects(host_data=b"\1" * 32)),
    "another id key": ("snp_id_key_digest", asks(id_key_digest="ab" * 48)),
    "another author key": ("snp_author_key_digest", asks(author_key_digest="ab" * 48)),
    "GPUs without evidence": ("gpu_count", expects(gpus=1)),
}

BINDING: dict[str, tuple[str, Guest]] = {
    "another nonce": ("nonce_mismatch", GOOD.but(nonce=bytes(32))),
    "an old report under a new document": (
        "snp_report_data",
        says(report_data=b"\7" * 64),
    ),
    "report data with a tail": (
        "snp_report_data",
        GOOD.but(spoil=None, fields={"report_data": b"\1" * 33}),
    ),
    "a good document through another key": ("tls_key", GOOD.but(shown_spki=OTHER)),
    "a document of another guest": ("tls_key", GOOD.but(spki=OTHER)),
    "no TLS key": (
        "document_malformed",
        GOOD.but(keys=keys_section(items=keys_section()["items"][1:])),
    ),
    "a TLS key of another form": (
        "document_format",
        GOOD.but(
            keys={**keys_section(), "items": [{**keys_section()["items"][0], "format": "x"}]}
        ),
    ),
    "devices nobody asked for": (
        "gpu_format",
        GOOD.but(
            devices=devices_section(
                {"id": "gpu0", "kind": "gpu", "vendor": "nvidia", "format": "x", "evidence": {}}
            )
        ),
    ),
}

REFUSALS = {**CHAIN, **REVOCATION, **REPORT, **TCB_AND_CHIP, **POLICY, **BINDING}

V2_REFUSALS: dict[str, tuple[str, Guest]] = {
    "no freshness": ("evidence_not_fresh", GOOD),
    "another key, unfresh": ("tls_key", GOOD.but(shown_spki=OTHER)),
    "another measurement, unfresh": ("snp_measurement", expects(snp_measurement=bytes(48))),
}


def refused_for(verdict: Verdict, code: str) -> bool:
    """Whether it was refused, and for this reason."""
    failed = [check.code for check in verdict.checks if not check.passed]
    return verdict.attested is False and not verdict.admits and code in failed
