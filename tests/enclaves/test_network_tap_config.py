from __future__ import annotations

from collections.abc import Sequence

import pytest

from agent.enclaves.network import NetworkError
from agent.enclaves.network_tap import TapNetwork
from agent.host.commands import CompletedCommand
from agent.model.enclave import Endpoint
from agent.model.ids import EnclaveId

BRIDGE = "vnt0"
SUBNET = "198.18.7.0/24"
BLUE_ADDRESS = "198.18.7.2"


def test_what_the_guest_is_told_fits_the_bridge() -> None:
    network = TapNetwork(BRIDGE, SUBNET, instance="one")
    told = network.guest_address(BLUE_ADDRESS)
    assert (told.cidr, told.gateway) == ("198.18.7.2/24", "198.18.7.1")
    assert network.addresses()[0] == "198.18.7.2"
    assert network.addresses()[-1] == "198.18.7.254"
    assert len(network.addresses()) == 253
    assert network.endpoint(BLUE_ADDRESS, 443, (443, 80)) == Endpoint(
        address=BLUE_ADDRESS, port=443
    )
    with pytest.raises(KeyError):
        network.endpoint(BLUE_ADDRESS, 22, (443, 80))


@pytest.mark.parametrize(
    ("bridge", "subnet", "text"),
    [
        ("a/b", SUBNET, "network.bridge"),
        ("x" * 16, SUBNET, "network.bridge"),
        ("a b\n", SUBNET, "network.bridge"),
        (BRIDGE, "198.18.7.1/24", "network.subnet: '198.18.7.1/24' is not an IPv4 subnet"),
        (BRIDGE, "198.18.7.0/31", "network.subnet: the prefix of 198.18.7.0/31 must be 16 to 30"),
        (BRIDGE, "10.0.0.0/8", "network.subnet: the prefix"),
        (BRIDGE, "fd00::/64", "network.subnet"),
        (BRIDGE, "nonsense", "network.subnet"),
    ],
)
def test_a_wrong_configuration_names_its_field(bridge: str, subnet: str, text: str) -> None:
    with pytest.raises(NetworkError) as caught:
        TapNetwork(bridge, subnet, instance="one")
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("enclave", ["../../ab", "a,b", "", "blueblue\n", "BLUEBLUE"])
async def test_an_impossible_enclave_id_reaches_no_tool(enclave: str) -> None:
    async def never(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        raise AssertionError(argv)

    network = TapNetwork(BRIDGE, SUBNET, instance="one", run=never)
    with pytest.raises(NetworkError, match="is not an enclave's id"):
        await network.attach(EnclaveId(enclave), BLUE_ADDRESS, (443,))
