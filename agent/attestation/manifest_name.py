"""Which of NVIDIA's reference manifests a device's own report asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ManifestName:
    """`id`: the vendor's name for it. `product` and `version`: what must stand in it."""

    id: str
    product: str
    version: str
