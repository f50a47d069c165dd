"""Where the SSH server listens, by its configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.inventory.ssh_server import read_ssh_listeners
from agent.model.resources import Listen


def listeners(*texts: str) -> tuple[Listen, ...]:
    return tuple(sorted(map(Listen.parse, texts)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("0.0.0.0:22", "[::]:22")),
        ("# Port 2222\nUsePAM yes\n", ("0.0.0.0:22", "[::]:22")),
        ("Port 2222\n", ("0.0.0.0:2222", "[::]:2222")),
        ("port=22\nPort 2222 # two\n", ("0.0.0.0:22", "0.0.0.0:2222", "[::]:22", "[::]:2222")),
        ("ListenAddress 192.0.2.1\nPort 2222", ("192.0.2.1:2222",)),
        ("ListenAddress 192.0.2.1:2022\n", ("192.0.2.1:2022",)),
        ("ListenAddress [2001:db8::1]:2022\n", ("[2001:db8::1]:2022",)),
        ("ListenAddress [2001:db8::1]\n", ("[2001:db8::1]:22",)),
        ("ListenAddress 2001:db8::1\n", ("[2001:db8::1]:22",)),
        ("ListenAddress 192.0.2.1 rdomain red\n", ("192.0.2.1:22",)),
        ("ListenAddress bastion.example\n", ("0.0.0.0:22", "[::]:22")),  # whatever that means
        ("ListenAddress 192.0.2.1\nMatch User git\nPort 1\n", ("192.0.2.1:22",)),
        ("Port nonsense\n", ("0.0.0.0:22", "[::]:22")),
    ],
)
def test_what_the_configuration_says(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    config = tmp_path / "sshd_config"
    config.write_text(text)
    assert read_ssh_listeners(config) == listeners(*expected)


def test_what_it_includes_counts_too(tmp_path: Path) -> None:
    config, parts = tmp_path / "sshd_config", tmp_path / "sshd_config.d"
    parts.mkdir()
    config.write_text(f"Include {parts}/*.conf\nInclude {config}\nListenAddress 192.0.2.1\n")
    (parts / "10-port.conf").write_text('Port "2222"\n')
    assert read_ssh_listeners(config) == listeners("192.0.2.1:2222")


def test_what_an_included_file_includes_is_looked_for_beside_the_first(tmp_path: Path) -> None:
    config, parts = tmp_path / "sshd_config", tmp_path / "sshd_config.d"
    parts.mkdir()
    config.write_text("Include sshd_config.d/*.conf\n")
    (parts / "10.conf").write_text("Include more.conf\n")
    (tmp_path / "more.conf").write_text("Port 2222\n")
    assert read_ssh_listeners(config) == listeners("0.0.0.0:2222", "[::]:2222")


def test_without_a_configuration_it_is_the_standard_port(tmp_path: Path) -> None:
    assert read_ssh_listeners(tmp_path / "none") == listeners("0.0.0.0:22", "[::]:22")
