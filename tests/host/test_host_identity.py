"""The host's derived id."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.host.identity import HostIdentityError, derive_host_id

MACHINE = "0123456789abcdef0123456789abcdef"


def test_the_id_is_stable_and_does_not_tell_the_machine_id(tmp_path: Path):
    path = tmp_path / "machine-id"
    path.write_text(MACHINE + "\n")
    host_id = derive_host_id(path)
    assert host_id == derive_host_id(path) == "524e50b97fb76e3b989822178e2db847"
    assert re.fullmatch(r"[0-9a-f]{32}", host_id)
    assert MACHINE[:8] not in host_id
    path.write_text(MACHINE[::-1])
    assert derive_host_id(path) != host_id


@pytest.mark.parametrize("text", ["", "uninitialized\n", "0" * 32, MACHINE[:31], "x" * 1000])
def test_what_is_no_machine_id_is_refused(tmp_path: Path, text: str):
    (tmp_path / "machine-id").write_text(text)
    with pytest.raises(HostIdentityError, match="set host_id"):
        derive_host_id(tmp_path / "machine-id")


def test_a_missing_machine_id_is_refused(tmp_path: Path):
    with pytest.raises(HostIdentityError, match="set host_id"):
        derive_host_id(tmp_path / "machine-id")
