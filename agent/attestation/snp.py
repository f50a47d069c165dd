"""SEV-SNP: from the bytes of a report and what vouches for it to claims, or a refusal.

Source: SEV-SNP Firmware ABI (56860), 7.3; VCEK certificate and KDS interface (57230), 3. The order
is fixed: form, chain, signature, and only then what the report says against what its certificate
says. Which claims are good enough is for `policy_snp`.
"""

from __future__ import annotations

import datetime as dt

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from agent.attestation import der
from agent.attestation.claims import SnpClaims
from agent.attestation.collateral import Endorsements
from agent.attestation.evidence import EvidenceError
from agent.attestation.roots import Trust
from agent.attestation.snp_certificate import Certificate
from agent.attestation.snp_chain import Chain, verify_chain
from agent.attestation.snp_report import SnpReport, parse_report
from agent.attestation.snp_tcb import Product, Signer, Tcb, decode_tcb

_AMD = "1.3.6.1.4.1.3704.1"
_PRODUCT_NAME = f"{_AMD}.2"
_HARDWARE_ID = f"{_AMD}.4"
_PROVIDER = f"{_AMD}.5"
_TCB_PARTS = {"bootloader": 1, "tee": 2, "snp": 3, "microcode": 8, "fmc": 9}
_PRODUCT_NAMES = {"Bergamo": Product.GENOA, "Siena": Product.GENOA} | {
    product.value: product for product in Product
}
_CHIP_ID_BYTES = {Product.MILAN: 64, Product.GENOA: 64, Product.TURIN: 8}
_ECDSA = ec.ECDSA(hashes.SHA384())


def verify_report(raw: bytes, given: Endorsements, trust: Trust, now: dt.datetime) -> SnpClaims:
    """Claims that are as true as the root's word. Raises EvidenceError.

    Codes beyond those of `parse_report` and `verify_chain`: `chip_key_masked`,
    `report_signature`, `product_mismatch`, `tcb_mismatch`, `hardware_id_mismatch`,
    `certificate_extension`.
    """
    report = parse_report(raw)
    if report.chip_key_masked and report.signer is Signer.VCEK:
        raise EvidenceError(
            "chip_key_masked", "the host masks the chip's key: a VCEK signs no report there"
        )
    chain = verify_chain(given, report.signer, trust, now)
    _require_signature(report, chain)
    _require_product(report, chain)
    reported = decode_tcb(report.reported_tcb, chain.product, "reported TCB")
    require_tcb(reported, chain.leaf)
    _require_chip(report, chain)
    return SnpClaims(
        report=report,
        product=chain.product,
        current=decode_tcb(report.current_tcb, chain.product, "current TCB"),
        reported=reported,
        committed=decode_tcb(report.committed_tcb, chain.product, "committed TCB"),
        launch=decode_tcb(report.launch_tcb, chain.product, "launch TCB"),
        root_spki_sha256=chain.root_spki_sha256,
        valid_until=chain.valid_until,
        crl=chain.crl,
        revocation_checked=chain.revocation_checked,
        simulated=chain.simulated,
        provider=_text(chain.leaf, _PROVIDER) if report.signer is Signer.VLEK else None,
        collateral=chain.collateral,
    )


def _require_signature(report: SnpReport, chain: Chain) -> None:
    signature = encode_dss_signature(report.signature_r, report.signature_s)
    try:
        chain.key.verify(signature, report.signed, _ECDSA)
    except InvalidSignature as error:
        raise EvidenceError(
            "report_signature", f"the report is not signed by the {chain.leaf.what} beside it"
        ) from error


def _require_product(report: SnpReport, chain: Chain) -> None:
    """The root, the certificate and (from version 3 on) the report name one product line."""
    if report.product not in (None, chain.product):
        raise EvidenceError(
            "product_mismatch", f"the report is of {report.product}, its root of {chain.product}"
        )
    name = _text(chain.leaf, _PRODUCT_NAME)
    if name is None or _PRODUCT_NAMES.get(name.partition("-")[0]) is not chain.product:
        raise EvidenceError(
            "product_mismatch",
            f"the {chain.leaf.what} names product {name!r}, its root {chain.product}",
        )


def require_tcb(reported: Tcb, leaf: Certificate) -> None:
    """The key was derived for exactly the TCB that the report claims. Raises EvidenceError
    `tcb_mismatch`, `certificate_extension`.
    """
    for part, value in reported.parts().items():
        certified = _number(leaf, f"{_AMD}.3.{_TCB_PARTS[part]}", f"{part} version")
        if certified != value:
            raise EvidenceError(
                "tcb_mismatch",
                f"reported TCB, {part}: the report says {value}, the {leaf.what} {certified}",
            )


def _require_chip(report: SnpReport, chain: Chain) -> None:
    """A VCEK is one chip's; a VLEK is no chip's, and then the chip's id proves nothing."""
    certified = chain.leaf.extensions.get(_HARDWARE_ID)
    if report.signer is Signer.VLEK:
        if certified is not None:
            raise EvidenceError("certificate_extension", "the VLEK names a chip, as a VCEK would")
        return
    require_hardware(report.chip_id, chain.product, chain.leaf)


def require_hardware(chip_id: bytes, product: Product, leaf: Certificate) -> None:
    """The VCEK is that chip's; `chip_id` as it stands in a report. Raises EvidenceError
    `certificate_extension`, `hardware_id_mismatch`.
    """
    certified = leaf.extensions.get(_HARDWARE_ID)
    size = _CHIP_ID_BYTES[product]
    if certified is None or len(certified) != size:
        raise EvidenceError(
            "certificate_extension", f"the VCEK does not hold a hardware id of {size} bytes"
        )
    if chip_id != certified.ljust(len(chip_id), b"\0"):
        raise EvidenceError(
            "hardware_id_mismatch", "the chip id of the report is not the one of its VCEK"
        )


def _number(leaf: Certificate, oid: str, what: str) -> int:
    raw = leaf.extensions.get(oid)
    if raw is None:
        raise EvidenceError("certificate_extension", f"the {leaf.what} does not say its {what}")
    try:
        return der.integer(der.sole(raw, der.INTEGER, what).content, what)
    except der.DerError as error:
        raise EvidenceError("certificate_extension", f"the {leaf.what}: {error}") from error


def _text(leaf: Certificate, oid: str) -> str | None:
    raw = leaf.extensions.get(oid)
    if raw is None:
        return None
    try:
        return der.text(der.sole(raw, der.IA5_STRING, oid), f"extension {oid}")
    except der.DerError as error:
        raise EvidenceError("certificate_extension", f"the {leaf.what}: {error}") from error
