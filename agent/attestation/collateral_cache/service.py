"""The cache of a host that has a TEE, joined and alive: prefetched, renewed, served to guests."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from agent.attestation.collateral_cache.cache import CollateralCache
from agent.attestation.collateral_cache.disk_cache import DiskCache
from agent.attestation.collateral_cache.endorser import CachedEndorser
from agent.attestation.collateral_cache.items import Service
from agent.attestation.collateral_cache.vendor import Vendors
from agent.attestation.roots import Trust
from agent.config import AttestationConfig, TdxUpdate
from agent.host.clock import Clock
from agent.model.resources import Listen

if TYPE_CHECKING:
    from agent.attestation.collateral_cache.authentic import Roots
    from agent.attestation.collateral_cache.endpoint import CollateralEndpoint

_LOOK_EVERY_S = 60.0


class CollateralService:
    """`start` never waits for a vendor: what is missing then comes while the host works."""

    def __init__(
        self, cache: CollateralCache, endorser: CachedEndorser, listen: str | None, clock: Clock
    ) -> None:
        self.endorser = endorser
        self._cache = cache
        self._listen = listen
        self._clock = clock
        self._loop: asyncio.Task[None] | None = None
        self._endpoint: CollateralEndpoint | None = None

    async def start(self) -> None:
        """Begin to prefetch and, if that is configured, to answer guests. Raises EndpointError."""
        if self._listen is not None:
            from agent.attestation.collateral_cache.endpoint import CollateralEndpoint

            self._endpoint = CollateralEndpoint(self.endorser, self._clock)
            await self._endpoint.start(Listen.parse(self._listen))
        self._loop = asyncio.create_task(self._keep_fresh(), name="collateral")

    async def close(self) -> None:
        """End it all; what is on disk stays."""
        if self._endpoint is not None:
            await self._endpoint.close()
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loop
        await self._cache.close()

    async def _keep_fresh(self) -> None:
        await self.endorser.recall()
        seen = self.endorser.changed.count
        while True:
            await self.endorser.prefetch()
            await self._cache.refresh_due()
            seen = await self.endorser.changed.beyond(seen, _LOOK_EVERY_S)


def open_collateral(
    config: AttestationConfig,
    *,
    state_dir: Path,
    clock: Clock,
    tls: ssl.SSLContext | None = None,
) -> CollateralService:
    """Nothing is read, made or asked before `start`. `tls`: what the vendors are trusted by, if
    not the system's certificates.
    """
    collateral = config.collateral
    disk_cache = DiskCache(state_dir / "collateral")
    urls = {
        Service.AMD: collateral.amd_url,
        Service.INTEL: collateral.intel_url,
        Service.INTEL_ROOT: collateral.intel_root_crl_url,
        Service.NVIDIA_RIM: collateral.nvidia_rim_url,
    }
    cache = CollateralCache(
        disk_cache=disk_cache,
        vendors=None if collateral.offline else Vendors(urls, tls=tls),
        roots=_vendors_roots,
        clock=clock,
        directory=DiskCache(collateral.directory) if collateral.directory else None,
    )
    endorser = CachedEndorser(
        cache,
        disk_cache,
        _vendors_roots,
        clock,
        require_crl=config.snp.require_crl,
        early=config.tdx.update is TdxUpdate.EARLY,
        require_rim=config.gpu.require_rim,
    )
    return CollateralService(cache, endorser, collateral.listen, clock)


def _vendors_roots() -> Roots:
    """Never a simulated one: what such a root signs is no vendor's to give out."""
    from agent.attestation.collateral_cache.authentic import Roots

    return Roots(amd=Trust())
