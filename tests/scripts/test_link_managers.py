"""The drop-ins by which other managers of links are told to leave ours alone."""

from __future__ import annotations

import configparser
import fnmatch
import re
from pathlib import Path

from agent.config import NetworkConfig
from agent.enclaves.tap_names import tap_name
from agent.model.ids import EnclaveId

_ROOT = Path(__file__).parents[2]
_DROP_INS = {
    "05-enclave-agent.network": "/etc/systemd/network/05-enclave-agent.network",
    "enclave-agent-networkmanager.conf": "/etc/NetworkManager/conf.d/enclave-agent.conf",
}
LINKS = (NetworkConfig().bridge, tap_name(EnclaveId("abcdefgh")))


def read(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((_ROOT / "systemd" / name).read_text())
    return parser


def test_networkd_leaves_bridge_and_taps_alone_and_nothing_else() -> None:
    told = read("05-enclave-agent.network")
    assert told["Link"]["Unmanaged"] == "yes"
    patterns = told["Match"]["Name"].split()
    for link in LINKS:
        assert any(fnmatch.fnmatchcase(link, one) for one in patterns)
    for link in ("eth0", "ens3", "br0", "docker0", "enclave1", "encx"):
        assert not any(fnmatch.fnmatchcase(link, one) for one in patterns)


def test_networkmanager_leaves_them_alone_beside_what_others_told_it() -> None:
    told = read("enclave-agent-networkmanager.conf")
    (key,) = told["keyfile"]
    assert key == "unmanaged-devices+"  # added to the list of other files
    patterns = [one.removeprefix("interface-name:") for one in told["keyfile"][key].split(";")]
    for link in LINKS:
        assert any(fnmatch.fnmatchcase(link, one) for one in patterns)


def test_they_come_and_go_with_the_agent() -> None:
    install = (_ROOT / "scripts/install").read_text()
    uninstall = (_ROOT / "scripts/uninstall").read_text()
    for name, place in _DROP_INS.items():
        assert re.search(rf'^put "\$root_dir/systemd/{re.escape(name)}" {place}$', install, re.M)
        assert place in uninstall
