"""Which images a workload config names. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.releases.fields import Field, ReleaseFieldError
from agent.releases.naming import CONFIG
from agent.releases.workload import MAX_CONFIG_BYTES
from agent.strict_yaml import StrictYamlError, load_strict_yaml

_MAX_CONTAINERS = 64
_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,400}@sha256:[0-9a-f]{64}")
_RULE = "must be an image reference with a digest: NAME@sha256:<64 hex digits>"
_PLAYED = (".example", ".invalid")


@dataclass(frozen=True, slots=True)
class Reference:
    """One container's image, and its field of the config, to complain about."""

    container: str
    text: str
    digest: str
    field: Field

    @property
    def played(self) -> bool:
        """Whether the reference guest only acts it out: nobody can have such a registry."""
        return is_played(self.text)


def is_played(image: str) -> bool:
    """Whether nobody can have the registry of an image."""
    host, slash, _ = image.partition("/")
    return bool(slash) and host.partition(":")[0].endswith(_PLAYED)


def references(config: bytes) -> tuple[Reference, ...]:
    """Every container's image, in the config's order. ReleaseFieldError for one without digest."""
    try:
        root = Field(CONFIG, "", load_strict_yaml(config, max_bytes=MAX_CONFIG_BYTES))
    except StrictYamlError as error:
        raise ReleaseFieldError(CONFIG, "", str(error)) from error
    listed = root.optional("containers")
    found: list[Reference] = []
    for container in listed.items(_MAX_CONTAINERS) if listed else []:
        image = container.member("image")
        text = image.text(_REFERENCE, _RULE)
        found.append(
            Reference(
                container=container.member("name").text(),
                text=text,
                digest=text.rpartition("@")[2],
                field=image,
            )
        )
    return tuple(found)
