"""The external config: what the host tells the guest per launch, unmeasured, as YAML bytes. Pure.

Invariant: every value arrives in the guest exactly as it was given, whatever characters it has: a
value can never become another key or another type. The bytes hold secrets: they are written to
the enclave's config disk and nowhere else, and no error here quotes a value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.enclaves.network import GuestAddress
from agent.enclaves.spec import SpecError

_NOT_PLAIN = re.compile(r"[^\n\x20-\x7e]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What the guest may show of itself.

    `cpu`: the TEE, with the processor's model behind it; `gpu`: the GPUs' model. `domain`: its
    name, the same that `env.DOMAIN` says.
    """

    id: str
    domain: str
    image: str
    cpu: str
    gpu: str
    repo: str
    tag: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalConfig:
    """All of it. The values of secrets are not in its repr."""

    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata: Metadata
    network: GuestAddress


def render(config: ExternalConfig) -> bytes:
    """The document: keys sorted, the same config gives the same bytes.

    Written as JSON, which is YAML once no character beyond printable ASCII is left bare: a YAML
    dumper's own idea of when a scalar needs quotes plays no part, in whatever dialect it is read.
    Raises SpecError, naming the variable, for a value that is not Unicode text.
    """
    meta = config.metadata
    document = {
        "env": _scalars("variable", config.env),
        "metadata": _scalars("metadata", {name: getattr(meta, name) for name in meta.__slots__}),
        "network": {"address": config.network.cidr, "gateway": config.network.gateway},
        "secrets": _scalars("secret", config.secrets),
    }
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    # Not JSON's own escapes: YAML knows no surrogate pairs, but has an escape of 8 digits.
    return _NOT_PLAIN.sub(lambda c: f"\\U{ord(c[0]):08x}", text).encode("ascii") + b"\n"


def _scalars(kind: str, values: Mapping[str, str]) -> dict[str, str]:
    for name, value in values.items():
        try:
            (name + value).encode("utf-8")
        except UnicodeEncodeError:
            raise SpecError(f"the value of {kind} {name!r} is not Unicode text") from None
    return dict(values)
