"""Building the gate of a host that has a TEE."""

from __future__ import annotations

from agent.attestation.fetch import EvidenceFetcher
from agent.attestation.policy import EvidencePolicy
from agent.attestation.recogniser import Recogniser
from agent.attestation.roots import Trust
from agent.attestation.snp_tcb import Product
from agent.attestation.verifier import Endorser, ListKeeper, Verifier
from agent.config import AttestationConfig
from agent.host.clock import Clock
from agent.host.guest_sockets import UNMARKED, GuestSockets


def open_verifier(
    config: AttestationConfig,
    clock: Clock,
    *,
    endorser: Endorser | None = None,
    lists: ListKeeper | None = None,
    recogniser: Recogniser | None = None,
    simulated_root: str | None = None,
    sockets: GuestSockets = UNMARKED,
) -> Verifier:
    """`lists`: where revocation lists are kept. `recogniser`: what is known of machine, launches
    and devices. `simulated_root`: SPKI SHA-256 of the ARK of this
    installation's simulated Milan.

    That is given with `tee: simulated` and never otherwise: without it no evidence is believed
    but what the vendors' own roots vouch for.
    """
    roots = {simulated_root: Product.MILAN} if simulated_root else {}
    return Verifier(
        policy=EvidencePolicy(config=config, allow_simulated=bool(simulated_root)),
        trust=Trust(simulated=roots),
        clock=clock,
        endorser=endorser,
        lists=lists,
        recogniser=recogniser,
        fetcher=EvidenceFetcher(sockets=sockets),
    )
