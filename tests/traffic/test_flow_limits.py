"""What one tenant may have of the kernel's connection table, tried with flows in namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from collections.abc import Iterator, Sequence

import pytest

from agent.config_limits import LimitsConfig
from agent.host.commands import CompletedCommand, run_command
from agent.host.contact import open_tcp
from agent.host.guest_sockets import GuestSockets
from agent.host.nftables_netlink import rule_comments, ruleset_generation
from agent.model.resources import Listen
from agent.traffic.nftables import NftablesTraffic
from tests.fakes.netns import ip, join
from tests.traffic.clients import ask
from tests.traffic.remote import Remote
from tests.traffic.worlds import BRIDGE, CLIENT, OUTSIDE, SUBNET, NftablesWorld, order

BLUE, GREEN = "10.99.7.2", "10.99.7.3"
LISTEN = Listen(address=OUTSIDE, port=8443)
OTHER = Listen(address=OUTSIDE, port=8444)

pytestmark = pytest.mark.root


@pytest.fixture
def client(host: NftablesWorld) -> Iterator[Remote]:
    """A machine outside, with an address more."""
    with Remote() as remote:
        join(remote.pid, link="trtclient", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtclient")
        yield remote


@pytest.fixture
def inside(host: NftablesWorld) -> Iterator[dict[str, Remote]]:
    """Programs in the guests."""
    with contextlib.ExitStack() as stack:
        guests = {BLUE: "blue", GREEN: "green"}
        yield {
            address: stack.enter_context(Remote(host.servers[name].pid))
            for address, name in guests.items()
        }


async def limited(host: NftablesWorld, **limits: int) -> NftablesTraffic:
    """Blue and green behind a listener each."""
    traffic = NftablesTraffic(
        BRIDGE, SUBNET, (), state_file=host.state_file, limits=LimitsConfig(**limits)
    )
    await traffic.start()
    await traffic.apply(order(1, (LISTEN, host.endpoint("blue")), deployment="one"))
    await traffic.apply(order(1, (OTHER, host.endpoint("green")), deployment="two"))
    return traffic


def flows(*wanted: str) -> list[str]:
    argv = ["conntrack", "-L", *wanted]
    listed = subprocess.run(argv, check=True, capture_output=True, text=True)
    return listed.stdout.splitlines()


async def test_a_guest_has_so_many_flows_and_its_neighbour_has_its_own(
    host: NftablesWorld, client: Remote, inside: dict[str, Remote]
) -> None:
    traffic = await limited(host, guest_flows=20, guest_flows_per_s=100_000)
    inside[BLUE].flood(CLIENT, ports=500)
    assert len(flows("-s", BLUE)) == 20
    refused = (await traffic.refused()).counts
    assert refused == {BLUE: {"guest_flows": 480}}
    with client.server(80):
        assert inside[GREEN].outcome(CLIENT, 80) == "connected"
        assert inside[BLUE].outcome(CLIENT, 80) == "timed out"
    refused = (await traffic.refused()).counts
    assert client.ask(OUTSIDE, 8443) == f"blue {CLIENT}"  # what is opened to it is another matter
    assert (await traffic.refused()).counts == refused


async def test_a_share_of_thousands_is_kept_and_nearly_used(
    host: NftablesWorld, client: Remote, inside: dict[str, Remote]
) -> None:
    await limited(host, guest_flows=2048, guest_flows_per_s=100_000)
    inside[BLUE].flood(CLIENT, ports=1000)
    assert len(flows("-s", BLUE)) == 1000
    inside[BLUE].flood(CLIENT, ports=5000)
    assert 1800 <= len(flows("-s", BLUE)) <= 2048


async def test_a_guest_begins_only_so_many_flows_a_second(
    host: NftablesWorld, client: Remote, inside: dict[str, Remote]
) -> None:
    traffic = await limited(host, guest_flows_per_s=5)
    inside[BLUE].flood(CLIENT, ports=500)
    assert 10 <= len(flows("-s", BLUE)) <= 10 + 5 * 5
    refused = (await traffic.refused()).counts[BLUE]
    assert refused.keys() == {"guest_flows_per_s"}
    assert 465 <= refused["guest_flows_per_s"] <= 490
    await asyncio.sleep(1)
    assert inside[BLUE].datagram(CLIENT, 9) == "closed"


async def test_what_flows_in_one_direction_only_is_one_flow(
    host: NftablesWorld, client: Remote, inside: dict[str, Remote]
) -> None:
    """Until it is answered, the kernel calls every packet of it new."""
    traffic = await limited(host, guest_flows=3, guest_flows_per_s=2)
    inside[BLUE].flood(CLIENT, ports=2, packets=500)
    assert (await traffic.refused()).counts == {}


async def test_other_protocols_than_tcp_and_udp_count_too(
    host: NftablesWorld, client: Remote, inside: dict[str, Remote]
) -> None:
    traffic = await limited(host, guest_flows=5, guest_flows_per_s=100_000)
    blue = host.servers["blue"].pid
    program = (
        "import socket\n"
        "for protocol in range(100, 130):\n"
        "    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)\n"
        f"    raw.sendto(b'', ('{CLIENT}', 0))\n"
    )
    subprocess.run(["nsenter", "-t", str(blue), "-n", "python3", "-c", program], check=True)
    assert len(flows("-s", BLUE)) == 5
    assert (await traffic.refused()).counts == {BLUE: {"guest_flows": 25}}


async def test_connections_from_one_source_and_to_one_deployment_are_bounded(
    host: NftablesWorld, client: Remote
) -> None:
    second = CLIENT[:-1] + "9"
    ip(f"addr add {second}/24 dev eth0", client.pid)
    traffic = await limited(host, deployment_connections=5, source_connections=3)
    for _ in range(3):
        client.hold(OUTSIDE, 8443)
    assert client.outcome(OUTSIDE, 8443) == "timed out"
    refused = (await traffic.refused()).counts
    assert refused[BLUE].keys() == {"source_connections"}
    assert await ask(LISTEN) == "blue"  # another source
    assert client.ask(OUTSIDE, 8444) == f"green {CLIENT}"  # another deployment
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection((OUTSIDE, 8443), timeout=10))
        with pytest.raises(TimeoutError):
            socket.create_connection((OUTSIDE, 8443), timeout=0.5)
    refused = (await traffic.refused()).counts
    assert refused[BLUE].keys() == {"source_connections", "deployment_connections"}
    assert client.held(say="still there") == ["data"] * 3


async def test_connections_that_ended_give_their_place_back(
    host: NftablesWorld, client: Remote
) -> None:
    """Also while the kernel remembers them: it waits for what may still come of them."""
    traffic = await limited(host, deployment_connections=3, source_connections=3)
    for _ in range(20):
        assert client.ask(OUTSIDE, 8443) == f"blue {CLIENT}"
        await asyncio.sleep(0.02)
    assert (await traffic.refused()).counts == {}


async def test_a_flood_of_beginnings_takes_no_more_than_the_deployments_share(
    host: NftablesWorld, client: Remote
) -> None:
    traffic = await limited(host, deployment_connections_per_s=5)
    for _ in range(30):
        with socket.socket() as one:
            one.setblocking(False)
            one.connect_ex((OUTSIDE, 8443))
    assert 10 <= len(flows("-p", "tcp", "--reply-src", BLUE)) <= 15
    assert set((await traffic.refused()).counts[BLUE]) == {"deployment_connections_per_s"}
    assert client.ask(OUTSIDE, 8444) == f"green {CLIENT}"


async def test_the_agents_own_looks_run_into_no_limit(host: NftablesWorld, client: Remote) -> None:
    limits = {"deployment_connections": 1, "source_connections": 1}
    traffic = await limited(host, **limits, deployment_connections_per_s=1)
    client.hold(OUTSIDE, 8443)
    assert client.outcome(OUTSIDE, 8443) == "timed out"
    before = (await traffic.refused()).counts
    ours = GuestSockets(BRIDGE)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            looking = open_tcp(host.endpoint("blue"), timeout_s=1, sockets=ours)
            await stack.enter_async_context(looking)
    assert (await traffic.refused()).counts == before


def seconds_left() -> int:
    (flow,) = flows("-p", "tcp", "--reply-src", BLUE)
    found = re.search(r"tcp +6 (\d+) ESTABLISHED", flow)
    assert found
    return int(found[1])


async def test_a_connection_is_over_when_nothing_was_said_for_an_hour_and_not_before(
    host: NftablesWorld, client: Remote
) -> None:
    await limited(host)
    client.hold(OUTSIDE, 8443)
    await asyncio.sleep(2)
    assert 3590 <= seconds_left() <= 3599
    assert client.held(say="a word") == ["data"]
    assert 3599 <= seconds_left() <= 3600  # it begins anew


async def test_other_limits_are_in_force_at_the_next_start(
    host: NftablesWorld, client: Remote, inside: dict[str, Remote]
) -> None:
    await limited(host)
    client.hold(OUTSIDE, 8443)
    await limited(host, guest_flows=20, guest_flows_per_s=100_000)
    inside[BLUE].flood(CLIENT, ports=100)
    assert len(flows("-s", BLUE)) == 20
    assert client.held(say="still there") == ["data"]


@pytest.mark.parametrize(
    "change",
    [
        "delete table inet limits_enclave_agent",
        "flush chain inet limits_enclave_agent guests",
        "insert rule inet limits_enclave_agent arriving accept",
    ],
)
async def test_limits_that_somebody_takes_away_come_back_and_at_rest_nothing_is_run(
    host: NftablesWorld, change: str
) -> None:
    commands: list[Sequence[str]] = []

    async def noting(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        commands.append(argv)
        return await run_command(argv, stdin=stdin, timeout_s=timeout_s)

    traffic = NftablesTraffic(BRIDGE, SUBNET, (), state_file=host.state_file, run_command=noting)
    await traffic.start()
    whole = subprocess.check_output(["nft", "list", "table", "inet", "limits_enclave_agent"])
    commands.clear()
    await traffic.observe()
    assert [argv[2] for argv in commands] == ["list", "list"]  # of the routes' two tables
    subprocess.run(["nft", change], check=True)
    await traffic.observe()
    again = subprocess.check_output(["nft", "list", "table", "inet", "limits_enclave_agent"])
    assert again == whole
    assert await traffic.refused() == await host.traffic().refused()


async def test_a_kernel_that_cannot_count_serves_and_says_so(host: NftablesWorld) -> None:
    async def without_counting(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        if b"ct count" in stdin:
            return CompletedCommand(1, b"", b"Error: Could not process rule: No such thing\n")
        return await run_command(argv, stdin=stdin, timeout_s=timeout_s)

    traffic = NftablesTraffic(
        BRIDGE, SUBNET, (), state_file=host.state_file, run_command=without_counting
    )
    await traffic.start()
    listen = Listen(address="127.0.0.1", port=8443)
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    assert await ask(listen) == "blue"
    assert len(await traffic.observe()) == 1
    assert "No such thing" in str((await traffic.refused()).unlimited)


async def test_the_generation_of_the_rules_is_the_kernels(host: NftablesWorld) -> None:
    before = ruleset_generation()
    assert before is not None
    assert ruleset_generation() == before
    subprocess.run(["nft", "add table inet somebody"], check=True)
    after = ruleset_generation()
    assert after not in (None, before)
    assert rule_comments("somebody") == rule_comments("nobody") == []
    rules = [
        "add chain inet somebody one",
        'add rule inet somebody one tcp dport 1 drop comment "first"',
        "add rule inet somebody one accept",
        "add table ip somebody",
        "add chain ip somebody two",
        'add rule ip somebody two accept comment "of another family"',
    ]
    subprocess.run(["nft", "-f", "-"], input="\n".join(rules).encode(), check=True)
    assert rule_comments("somebody") == [("one", "first"), ("one", None)]
