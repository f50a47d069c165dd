"""Forms of strings that cross a socket, as JSON Schema says them.

The patterns are for readers of the schema; what decides is the parser beside the model, and a test
holds the two together. They are plain enough for every regular-expression dialect.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_VALUE_BYTES = 64 * 1024
MAX_NAMES = 256
# Values of secrets that a guest takes as missing, which then fails its boot.
NO_SECRETS = ("", "null")
MAX_PUBLISH = 64
MAX_COUNT = 2**31 - 1

_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_H16 = r"[0-9A-Fa-f]{1,4}"
_IPV6 = "|".join(
    [
        rf"(?:{_H16}:){{7}}{_H16}",
        rf"(?:{_H16}:){{1,7}}:",
        *(rf"(?:{_H16}:){{1,{7 - n}}}(?::{_H16}){{1,{n}}}" for n in range(1, 7)),
        rf":(?::{_H16}){{1,7}}",
        r"::",
    ]
)
_PORT = r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"

DEPLOYMENT_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
ENCLAVE_PATTERN = r"^[a-z2-7]{8}$"
BDF_PATTERN = r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$"
LEASE_PATTERN = r"^[a-z2-7]{16}$"
LISTEN_PATTERN = rf"^(?:{_IPV4}|\[(?:{_IPV6})\]):{_PORT}$"
TAG_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}$"
_REPO_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
REPO_PATTERN = rf"^{_REPO_PART}(?:/{_REPO_PART})?$"
VARIABLE_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]{0,127}$"
VALUE_PATTERN = r"^[^\u0000]*$"
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
DOMAIN_PATTERN = rf"^{_LABEL}(?:\.{_LABEL}){{0,7}}$"
_SEGMENT = r"\.?[A-Za-z0-9_~!$&'()+,;=:@-][A-Za-z0-9_~!$&'()+,;=:@.-]*"
_QUERY = r"[A-Za-z0-9_~!$&'()*+,;=:@%./?-]*"
PROBE_PATH_PATTERN = rf"^/(?:{_SEGMENT}/)*(?:{_SEGMENT})?(?:\?{_QUERY})?$"
MAX_PROBE_PATH = 256
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
PROBE_HOST_PATTERN = rf"^{_NAME}(?:\.{_NAME}){{0,7}}(?::{_PORT})?$"
NONCE_PATTERN = r"^[0-9a-f]{64}$"


def _form(pattern: str, description: str) -> Meta:
    return Meta(description=description, extra_json_schema={"pattern": pattern})


DeploymentText = Annotated[
    str,
    Meta(
        description="A deployment's name.",
        extra_json_schema={"pattern": DEPLOYMENT_PATTERN, "maxLength": 63},
    ),
]
ListenText = Annotated[str, _form(LISTEN_PATTERN, "ADDRESS:PORT, or [IPV6]:PORT.")]
TagText = Annotated[str, _form(TAG_PATTERN, "A release's tag.")]
RepoText = Annotated[str, _form(REPO_PATTERN, "Where releases come from: NAME or OWNER/NAME.")]
LeaseText = Annotated[str, _form(LEASE_PATTERN, "A lease's id.")]
DomainText = Annotated[str, _form(DOMAIN_PATTERN, "A host name in lower case.")]
ProbePathText = Annotated[
    str,
    Meta(
        description="A literal path of the workload, such as /health; a query may follow.",
        extra_json_schema={"pattern": PROBE_PATH_PATTERN, "maxLength": MAX_PROBE_PATH},
    ),
]
ProbeHostText = Annotated[str, _form(PROBE_HOST_PATTERN, "A host name; :PORT may follow.")]
VariableName = Annotated[str, _form(VARIABLE_PATTERN, "The name of a variable or secret.")]
ValueText = Annotated[
    str,
    Meta(
        description="At most 64 KiB of UTF-8 without NUL.",
        extra_json_schema={"pattern": VALUE_PATTERN, "maxLength": MAX_VALUE_BYTES},
    ),
]
SecretText = Annotated[
    str,
    Meta(
        description="At most 64 KiB of UTF-8 without NUL; neither empty nor the text null.",
        extra_json_schema={
            "pattern": VALUE_PATTERN,
            "minLength": 1,
            "maxLength": MAX_VALUE_BYTES,
            "not": {"const": "null"},
        },
    ),
]
Port = Annotated[int, Meta(ge=1, le=65535)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
