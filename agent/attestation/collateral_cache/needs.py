"""Which items stand for a piece of evidence. Loads what verifies: call it in a thread."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from agent.attestation.collateral_cache.authentic import Roots
from agent.attestation.collateral_cache.items import (
    AmdCrl,
    Item,
    PckCa,
    PckCrl,
    QeIdentityItem,
    RootCrl,
    TcbInfoItem,
    Vcek,
)
from agent.attestation.document import DeviceItem
from agent.attestation.manifest_name import ManifestName
from agent.attestation.pinned_chain import Chain, name_of
from agent.attestation.roots import PINNED
from agent.attestation.snp_certificate import parse_certificate
from agent.attestation.snp_report import parse_report
from agent.attestation.snp_tcb import Product, Signer
from agent.attestation.tdx.pck import read_platform
from agent.attestation.tdx.quote import parse_quote
from agent.attestation.tdx.signatures import verify_signatures

_CAS = {
    "Intel SGX PCK Platform CA": PckCa.PLATFORM,
    "Intel SGX PCK Processor CA": PckCa.PROCESSOR,
}


def snp_needs(report: bytes) -> tuple[Signer, tuple[Vcek, ...]]:
    """The certificate, for each product line that the chip may be of: version 2 does not say it.

    None for a VLEK, which AMD's service gives nobody: its provider loads it into the host.
    Raises EvidenceError.
    """
    parsed = parse_report(report)
    products = (parsed.product,) if parsed.product else (Product.MILAN, Product.GENOA)
    if parsed.signer is Signer.VLEK:
        return parsed.signer, ()
    return parsed.signer, tuple(Vcek(one, parsed.chip_id, parsed.reported_tcb) for one in products)


def crl_of(report: bytes, ark: bytes, roots: Roots) -> AmdCrl | None:
    """The list of the root that came with a report; None if that root is not believed.

    Raises EvidenceError.
    """
    root = parse_certificate(ark, "ARK").spki_sha256
    product = PINNED.get(root) or roots.amd.simulated.get(root)
    return AmdCrl(product, parse_report(report).signer) if product else None


def tdx_needs(
    quote: bytes, roots: Roots, now: dt.datetime, *, early: bool = False
) -> tuple[Item, ...]:
    """`early`: of which of Intel's sets. Raises EvidenceError, also for a quote whose signatures
    do not hold: nobody has the platform that it names.
    """
    chain = verify_signatures(parse_quote(quote), now, roots.intel_spki_sha256)
    fmspc = read_platform(chain[0]).fmspc
    return TcbInfoItem(fmspc, early), QeIdentityItem(early), PckCrl(pck_ca(chain)), RootCrl()


def pck_ca(chain: Chain) -> PckCa:
    """Which authority issued the leaf of a verified PCK chain."""
    return _CAS[name_of(chain[1])]


def gpu_needs(
    devices: Sequence[DeviceItem], roots: Roots, now: dt.datetime
) -> tuple[ManifestName, ...]:
    """The reference manifests that these devices name, each once. Raises EvidenceError, also where
    a signature does not hold: nobody has the device that names them.
    """
    from agent.attestation.gpu.items import verify_items

    claims = verify_items(devices, now, roots.amd.nvidia)
    return tuple(dict.fromkeys(name for device in claims for name in device.manifests))
