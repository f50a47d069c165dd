"""Which secrets and variables a deployment is given: those that its release declares, and those
that a guest's boot itself reads though no config declares them. Pure; values have no place here.

A secret's name that is nearly a declared one is a mistake and refused; another that nothing reads
is given to the guest all the same, and told. So is a variable's, however near it is.
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
DOMAIN = "DOMAIN"  # the variable by which every guest is told its name
_NEARLY = 0.75  # of difflib's ratio: one letter of four may differ


def check_declared(given: Collection[str], declared: Collection[str], place: str) -> None:
    """Raise FieldError for a name that is nearly one that a guest reads.

    `place`: of the names in the request, with its dot.
    """
    for name in undeclared(given, declared):
        near = difflib.get_close_matches(name, [*declared, *_OF_THE_BOOT], n=1, cutoff=_NEARLY)
        if near:
            raise FieldError(
                f"{place}{name}",
                f"no secret of this name is in the release's config; the nearest is {near[0]}",
            )


def undeclared(given: Collection[str], declared: Collection[str]) -> list[str]:
    """The names that no guest of this release reads, sorted."""
    found = sorted(set(given) - set(declared) - set(_OF_THE_BOOT))
    return [name for name in found if not _REGISTRIES.fullmatch(name)]


def unread_warnings(given: Collection[str], declared: Collection[str]) -> tuple[str, ...]:
    """What to know of secrets that are given in vain."""
    names = undeclared(given, declared)
    if not names:
        return ()
    known = ", ".join(sorted(declared)) or "none"
    return (
        f"secrets {', '.join(names)}: the release's config declares none of these names "
        f"(it declares: {known}); the guest is given them all the same",
    )


def unread_variables(given: Collection[str], declared: Collection[str]) -> tuple[str, ...]:
    """What to know of variables that are given in vain: each, with the nearest that is read."""
    found = []
    for name in sorted(set(given) - set(declared) - {DOMAIN}):
        near = difflib.get_close_matches(name, [*declared, DOMAIN], n=1, cutoff=_NEARLY)
        known = ", ".join(sorted(declared)) or "none"
        hint = f"did you mean {near[0]}?" if near else f"it names: {known}"
        found.append(f"variable {name}: the release's config names no such variable; {hint}")
    return tuple(found)
