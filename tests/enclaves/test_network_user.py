from __future__ import annotations

import socket
from pathlib import Path

import pytest

from agent.enclaves import host_ports
from agent.enclaves.network import NetworkError
from agent.enclaves.network_user import UserNetwork
from agent.enclaves.spec import Forward, UserNic
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId

NETWORK = UserNetwork("127.215.0.0/24")
BLUE, GREEN = EnclaveId("blueblue"), EnclaveId("greengr2")


async def test_every_guest_port_has_a_listener_of_the_host() -> None:
    nic = await NETWORK.attach(BLUE, "127.215.0.7", (443, 80))
    assert nic == UserNic(
        mac="02:00:7f:d7:00:07",
        subnet="10.0.2.0/24",
        gateway="10.0.2.2",
        guest_address="10.0.2.15",
        forwards=(Forward("127.215.0.7", 20000, 80), Forward("127.215.0.7", 20001, 443)),
    )


def test_an_endpoint_is_where_the_listener_is_whatever_the_order_of_the_ports() -> None:
    for ports in ((80, 443), (443, 80), (443, 80, 443)):
        assert NETWORK.endpoint("127.215.0.7", 443, ports) == Endpoint(
            address="127.215.0.7", port=20001
        )
    with pytest.raises(KeyError):
        NETWORK.endpoint("127.215.0.7", 22, (443, 80))


async def test_two_enclaves_never_share_a_listener() -> None:
    first, second = NETWORK.addresses()[:2]
    blue = await NETWORK.attach(BLUE, first, (443,))
    green = await NETWORK.attach(GREEN, second, (443,))
    assert set(blue.forwards).isdisjoint(green.forwards)
    assert blue.mac != green.mac


def test_what_the_guest_is_told_is_the_same_in_every_vm() -> None:
    told = NETWORK.guest_address("127.215.0.7")
    assert (told.cidr, told.gateway) == ("10.0.2.15/24", "10.0.2.2")


def test_addresses_are_of_the_loopback_subnet() -> None:
    addresses = NETWORK.addresses()
    assert (addresses[0], addresses[-1], len(addresses)) == ("127.215.0.1", "127.215.0.254", 254)


def port_of(network: UserNetwork, port: int = 443) -> int:
    return network.endpoint("127.215.0.7", port, (443, 80)).port


async def test_ports_that_a_program_has_are_passed_over_and_what_was_chosen_is_kept(
    tmp_path: Path,
) -> None:
    """A listener on all addresses has the port of each enclave's, and one of its own one."""
    file = tmp_path / "ports.json"
    network = UserNetwork("127.215.0.0/24", file)
    with socket.create_server(("0.0.0.0", 20000)), socket.create_server(("127.215.0.7", 20003)):
        nic = await network.attach(BLUE, "127.215.0.7", (443, 80))
        assert [one.host_port for one in nic.forwards] == [20004, 20005]
        assert [port_of(network, port) for port in (80, 443)] == [20004, 20005]
        other = await network.attach(GREEN, "127.215.0.8", (443,))
        assert [one.host_port for one in other.forwards] == [20001]
    later = UserNetwork("127.215.0.0/24", file)  # another agent, of the same boot
    assert port_of(later) == 20005
    await later.attach(BLUE, "127.215.0.7", (443, 80))
    assert port_of(later) == port_of(UserNetwork("127.215.0.0/24", file)) == 20001


async def test_where_no_port_is_free_the_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_ports, "_BEYOND", 20002)
    with socket.create_server(("127.215.0.7", 20000)):
        with pytest.raises(NetworkError) as caught:
            await UserNetwork("127.215.0.0/24").attach(BLUE, "127.215.0.7", (443,))
    assert "127.215.0.7:20000" in str(caught.value)
    assert "(process " in str(caught.value)


async def test_a_record_that_is_broken_stops_nobody(tmp_path: Path) -> None:
    file = tmp_path / "ports.json"
    file.write_text("{")
    network = UserNetwork("127.215.0.0/24", file)
    await network.attach(BLUE, "127.215.0.7", (443, 80))
    assert port_of(network) == 20001


async def test_nothing_is_left_in_the_kernel() -> None:
    await NETWORK.start()
    await NETWORK.attach(BLUE, "127.215.0.7", (443,))
    assert await NETWORK.list_attached() == set()
    await NETWORK.detach(BLUE)
    await NETWORK.restore()


@pytest.mark.parametrize(
    ("subnet", "text"),
    [
        ("10.0.0.0/24", "network.loopback_subnet: 10.0.0.0/24 is not inside 127.0.0.0/8"),
        ("127.0.0.0/8", "network.loopback_subnet: the prefix of 127.0.0.0/8 must be 16 to 30"),
        ("127.0.0.1/24", "network.loopback_subnet: '127.0.0.1/24' is not an IPv4 subnet"),
        ("::1/128", "network.loopback_subnet"),
    ],
)
def test_a_wrong_subnet_names_its_field(subnet: str, text: str) -> None:
    with pytest.raises(NetworkError) as caught:
        UserNetwork(subnet)
    assert str(caught.value).startswith(text)
