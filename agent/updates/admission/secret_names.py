"""Which secrets may be given to a deployment: what its release declares, and what a guest's boot
itself reads though no config declares it. Pure; values have no place here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from agent.updates.errors import FieldError

# Credentials of image registries, by the registry's host name or for Google's.
_REGISTRIES = re.compile(r"REGISTRY_[A-Za-z0-9_]+_(TOKEN|USER)|GCLOUD_[A-Za-z0-9_]+")
# What fetches the guest's certificate, and what its metrics are read with.
_OF_THE_BOOT = (
    "CERT_AUTH_TOKEN",
    "CLOUDFLARE_DNS_TOKEN",
    "CLOUDFLARE_ZONE_TOKEN",
    "METRICS_API_KEY",
)


def check_declared(given: Collection[str], declared: Collection[str], place: str) -> None:
    """Raise FieldError for a name that no guest would read, with the nearest that one would.

    `place`: of the names in the request, with its dot.
    """
    for name in sorted(set(given) - set(declared)):
        if name in _OF_THE_BOOT or _REGISTRIES.fullmatch(name):
            continue
        known = [*declared, *_OF_THE_BOOT, "REGISTRY_<HOST>_TOKEN", "REGISTRY_<HOST>_USER"]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        raise FieldError(
            f"{place}{name}",
            f"no secret of this name is in the release's config; the nearest is {nearest}",
        )
