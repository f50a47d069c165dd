"""Whose word is believed: the keys of the vendors' roots, pinned. Pure.

A root of another's, as the simulated processor's, is an explicit argument, and whatever it vouches
for says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.attestation.snp_tcb import Product

# SHA-256 of each root's SubjectPublicKeyInfo; AMD's are its ARKs.
PINNED: Mapping[str, Product] = {
    "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": Product.MILAN,
    "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": Product.GENOA,
    "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08": Product.TURIN,
}
INTEL_ROOT = "a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"
# NVIDIA's roots: of its devices, and of its reference manifests ("CoRIM signing Root CA").
NVIDIA_ROOT = "a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4"
NVIDIA_RIM_ROOT = "dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Which roots are believed. `simulated`: more of AMD's, by SPKI SHA-256. `intel`, `nvidia`,
    `nvidia_rim`: the one root of each.

    What another root than the vendor's vouches for is marked as simulated; a production
    configuration names none.
    """

    simulated: Mapping[str, Product] = field(default_factory=dict)
    intel: str = INTEL_ROOT
    nvidia: str = NVIDIA_ROOT
    nvidia_rim: str = NVIDIA_RIM_ROOT

    def __post_init__(self) -> None:
        if clash := PINNED.keys() & self.simulated.keys():
            raise ValueError(f"a root of AMD's cannot be a simulated one: {', '.join(clash)}")
