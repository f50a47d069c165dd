"""What a vendor can be asked for, and where it stands there. Pure.

Sources: AMD, VCEK certificate and KDS interface (57230), 4; Intel SGX/TDX Provisioning
Certification Service API, version 4; NVIDIA RIM service, version 1. An item's name is its file's
and is made of nothing but the numbers in it, or of a name that genuine evidence gave: whoever asks
for one cannot make us ask for anything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from agent.attestation.manifest_name import ManifestName
from agent.attestation.snp_tcb import Product, Signer, decode_tcb

_AMD_PARTS = {
    "fmc": "fmcSPL",
    "bootloader": "blSPL",
    "tee": "teeSPL",
    "snp": "snpSPL",
    "microcode": "ucodeSPL",
}
TURIN_CHIP_ID_BYTES = 8


class Service(StrEnum):
    """Who answers. Intel's root list stands apart from the rest."""

    AMD = "amd"
    INTEL = "intel"
    INTEL_ROOT = "intel-root"
    NVIDIA_RIM = "nvidia-rim"


class PckCa(StrEnum):
    """Which of Intel's two authorities issued a platform's certificate."""

    PLATFORM = "platform"
    PROCESSOR = "processor"


@dataclass(frozen=True, slots=True)
class Vcek:
    """The certificate of one chip at one TCB. `chip_id` and `tcb`: as they stand in a report."""

    product: Product
    chip_id: bytes
    tcb: bytes


@dataclass(frozen=True, slots=True)
class AmdChain:
    """ASK and ARK of a product line; those of VLEKs are others."""

    product: Product
    signer: Signer


@dataclass(frozen=True, slots=True)
class AmdCrl:
    """What the ARK of a product line revoked."""

    product: Product
    signer: Signer


@dataclass(frozen=True, slots=True)
class TcbInfoItem:
    """The TCB levels of a family of platforms; 6 bytes name it. `early`: of the set that Intel
    gives out before platforms can be expected to have its updates.
    """

    fmspc: bytes
    early: bool = False


@dataclass(frozen=True, slots=True)
class QeIdentityItem:
    """The quoting enclave that Intel stands for; `early` as of TcbInfoItem."""

    early: bool = False


@dataclass(frozen=True, slots=True)
class PckCrl:
    """What one of the PCK authorities revoked."""

    ca: PckCa


@dataclass(frozen=True, slots=True)
class RootCrl:
    """What Intel's root revoked."""


@dataclass(frozen=True, slots=True)
class Rim:
    """A reference manifest of NVIDIA's, by the name that a device's signed report gives it."""

    name: ManifestName


Item = Vcek | AmdChain | AmdCrl | TcbInfoItem | QeIdentityItem | PckCrl | RootCrl | Rim


def name_of(item: Item) -> str:
    """A file's name, at most 200 characters of a-z, 0-9, '-', '_' and '.'."""
    match item:
        case Vcek(product, chip_id, tcb):
            return f"amd-vcek-{product.lower()}-{chip_id.hex()}-{tcb.hex()}"
        case AmdChain(product, signer):
            return f"amd-{signer}-chain-{product.lower()}"
        case AmdCrl(product, signer):
            return f"amd-{signer}-crl-{product.lower()}"
        case TcbInfoItem(fmspc, early):
            return f"intel-tcb-info-{fmspc.hex()}{'-early' if early else ''}"
        case QeIdentityItem(early):
            return f"intel-qe-identity{'-early' if early else ''}"
        case PckCrl(ca):
            return f"intel-pck-crl-{ca}"
        case RootCrl():
            return "intel-root-crl"
        case Rim(name):
            return f"nvidia-rim-{name.id.lower()}"
        case _:
            assert_never(item)


def service_of(item: Item) -> Service:
    """Whom to ask."""
    match item:
        case Vcek() | AmdChain() | AmdCrl():
            return Service.AMD
        case TcbInfoItem() | QeIdentityItem() | PckCrl():
            return Service.INTEL
        case RootCrl():
            return Service.INTEL_ROOT
        case Rim():
            return Service.NVIDIA_RIM
        case _:
            assert_never(item)


def path_of(item: Item) -> str:
    """Path and query below the service's URL; empty: the URL itself. Raises EvidenceError
    `report_reserved` for a TCB that this product cannot have.
    """
    match item:
        case Vcek():
            return _vcek_path(item)
        case AmdChain(product, signer):
            return f"/{signer}/v1/{product}/cert_chain"
        case AmdCrl(product, signer):
            return f"/{signer}/v1/{product}/crl"
        case TcbInfoItem(fmspc, early):
            return (
                f"/tdx/certification/v4/tcb?fmspc={fmspc.hex()}{'&update=early' if early else ''}"
            )
        case QeIdentityItem(early):
            return f"/tdx/certification/v4/qe/identity{'?update=early' if early else ''}"
        case PckCrl(ca):
            return f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der"
        case RootCrl():
            return ""
        case Rim(name):
            return f"/{name.id}"
        case _:
            assert_never(item)


def chain_header_of(item: Item) -> str | None:
    """The header of the answer in which the issuers' certificates stand, if they do."""
    match item:
        case TcbInfoItem():
            return "Tcb-Info-Issuer-Chain"
        case QeIdentityItem():
            return "Sgx-Enclave-Identity-Issuer-Chain"
        case PckCrl():
            return "Sgx-Pck-Crl-Issuer-Chain"
        case _:
            return None


def voucher_of(item: Item) -> Item | None:
    """The item that this one is authenticated with, where it does not bring its issuers."""
    match item:
        case Vcek(product):
            return AmdChain(product, Signer.VCEK)
        case AmdCrl(product, signer):
            return AmdChain(product, signer)
        case RootCrl():
            return QeIdentityItem()
        case _:
            return None


def _vcek_path(item: Vcek) -> str:
    tcb = decode_tcb(item.tcb, item.product, "reported TCB")
    turin = item.product is Product.TURIN
    chip_id = item.chip_id[:TURIN_CHIP_ID_BYTES] if turin else item.chip_id
    query = "&".join(f"{_AMD_PARTS[part]}={value}" for part, value in tcb.parts().items())
    return f"/vcek/v1/{item.product}/{chip_id.hex()}?{query}"
