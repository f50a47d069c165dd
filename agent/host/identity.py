"""The one stable name of this host, when the configuration gives none."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from agent.errors import AgentError
from agent.host.files import StorageError, read_bounded
from agent.model.ids import HostId

_MACHINE_ID = re.compile(rb"[0-9a-f]{32}")
_PURPOSE = b"enclave-agent host id"


class HostIdentityError(AgentError):
    """This machine has no id of its own."""


def derive_host_id(machine_id_path: Path = Path("/etc/machine-id")) -> HostId:
    """32 hex digits that follow from the machine id and do not tell it.

    The machine id is a secret of the host (machine-id(5)): what leaves the host is keyed with it.
    Raises HostIdentityError if there is none, as on an image that never booted.
    """
    try:
        text = read_bounded(machine_id_path, 64).strip()
    except StorageError as error:
        raise HostIdentityError("this host has no machine id; set host_id") from error
    if not _MACHINE_ID.fullmatch(text) or text == b"0" * 32:
        raise HostIdentityError(f"{machine_id_path} holds no machine id; set host_id")
    return HostId(hmac.new(text, _PURPOSE, hashlib.sha256).hexdigest()[:32])
