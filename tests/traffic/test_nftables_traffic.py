"""What the nftables data plane alone promises: the kernel's, in namespaces of our own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from agent.host.commands import CompletedCommand, run_command
from agent.model.resources import Listen
from agent.traffic.nftables import NftablesTraffic, probe_nftables
from agent.traffic.port import StaleGenerationError, TrafficError
from tests.fakes.netns import add_ipv6, ip, join
from tests.traffic.clients import ask, connected, say, who
from tests.traffic.remote import Remote
from tests.traffic.worlds import (
    BRIDGE,
    CLIENT,
    GATEWAY,
    OUTSIDE,
    PORTS,
    NftablesWorld,
    free_listen,
    order,
)

pytestmark = pytest.mark.root

FOREIGN = """
table inet somebody {
  map services { type inet_service : ipv4_addr; elements = { 1 : 198.51.100.1 }; }
  chain input { type filter hook input priority 5; policy accept; tcp dport 1 drop; }
}
table ip nat {
  chain out { type nat hook output priority -90; policy accept; }
}
"""


def nft(text: str) -> str:
    argv = ["nft", "-f", "-"]
    return subprocess.run(argv, input=text, check=True, capture_output=True, text=True).stdout


def ruleset(*what: str) -> str:
    argv = ["nft", "list", *(what or ("ruleset",))]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def sysctls() -> dict[str, str]:
    found = {}
    for path in sorted(Path("/proc/sys/net/ipv4").rglob("*")):
        with contextlib.suppress(OSError):
            found[str(path)] = path.read_text()
    return found


@pytest.fixture
async def traffic(host: NftablesWorld) -> AsyncIterator[NftablesTraffic]:
    made = host.traffic()
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def client(host: NftablesWorld) -> Iterator[Remote]:
    """A machine outside, that knows the host and nothing behind it."""
    with Remote() as remote:
        join(remote.pid, link="trtclient", address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev trtclient")
        yield remote


@pytest.fixture
def blue(host: NftablesWorld) -> Iterator[Remote]:
    """A program inside the blue guest."""
    with Remote(host.servers["blue"].pid) as remote:
        yield remote


async def test_clients_elsewhere_keep_their_address(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    exact, wildcard = Listen(address=OUTSIDE, port=8443), Listen(address="0.0.0.0", port=8444)
    await traffic.apply(order(1, *((one, host.endpoint("blue")) for one in (exact, wildcard))))
    for port in (8443, 8444):
        assert client.ask(OUTSIDE, port) == f"blue {CLIENT}"


async def test_the_host_itself_is_a_client_by_every_address(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    listen = Listen(address="0.0.0.0", port=8444)
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    seen = {}
    for address in (OUTSIDE, GATEWAY, "127.0.0.1", "127.3.2.1"):
        async with connected(Listen(address=address, port=8444)) as streams:
            seen[address] = await say(streams, "who")
    assert seen[OUTSIDE] == f"blue {OUTSIDE}"
    assert seen[GATEWAY] == f"blue {GATEWAY}"
    assert seen["127.0.0.1"] == f"blue {GATEWAY}"
    assert seen["127.3.2.1"] == f"blue {GATEWAY}"


async def test_a_loopback_listener_is_for_the_host_alone(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    listen = Listen(address="127.0.0.1", port=8443)
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    assert await ask(listen) == "blue"
    client.send_loopback_to(OUTSIDE)
    assert client.outcome("127.0.0.1", 8443) == "timed out"


async def test_a_refusing_listener_refuses_clients_elsewhere_at_once(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    exact, wildcard = Listen(address=OUTSIDE, port=8443), Listen(address="0.0.0.0", port=8444)
    await traffic.apply(order(1, (exact, None), (wildcard, None)))
    assert client.outcome(OUTSIDE, 8443) == "refused"
    assert client.outcome(OUTSIDE, 8444) == "refused"


async def test_foreign_tables_are_left_byte_for_byte(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    nft(FOREIGN)
    before = [ruleset("table", *name) for name in (("inet", "somebody"), ("ip", "nat"))]
    listen = free_listen()
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    async with connected(listen) as held:
        await who(held)
        await traffic.reset(host.endpoint("blue"))
    await traffic.remove(order(1).deployment)
    again = host.traffic((22,))
    await again.start()
    await again.restore()
    after = [ruleset("table", *name) for name in (("inet", "somebody"), ("ip", "nat"))]
    assert after == before


async def test_restore_gives_ruleset_and_sysctls_back(host: NftablesWorld) -> None:
    nft(FOREIGN)
    Path("/proc/sys/net/ipv4/conf/trtblue/forwarding").write_text("1")
    before = ruleset(), sysctls()
    for _ in range(2):
        traffic = host.traffic()
        await traffic.start()
        await traffic.apply(order(1, (free_listen(), host.endpoint("blue"))))
        await traffic.close()
    assert sysctls() != before[1]
    await host.traffic().restore()
    assert (ruleset(), sysctls()) == before
    await host.traffic().restore()
    assert (ruleset(), sysctls()) == before


async def test_sysctls_that_were_on_stay_on(host: NftablesWorld) -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    before = sysctls()
    traffic = host.traffic()
    await traffic.start()
    await traffic.restore()
    assert sysctls() == before


async def test_a_map_flushed_by_hand_is_observed_and_mended(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    listen = free_listen()
    wanted = order(4, (listen, host.endpoint("blue")))
    await traffic.apply(wanted)
    nft("flush map inet enclave_agent exact")
    assert await traffic.observe() == {wanted.deployment: order(4, (listen, None))}
    with pytest.raises(ConnectionRefusedError):
        await ask(listen)
    await traffic.apply(wanted)
    assert await ask(listen) == "blue"
    nft("flush map inet enclave_agent exact")
    later = order(5, (listen, host.endpoint("green")))
    await traffic.apply(later)
    assert await traffic.observe() == {wanted.deployment: later}
    assert await ask(listen) == "green"


@pytest.mark.parametrize(
    "damage",
    [
        "flush chain inet enclave_agent dispatch",
        "flush chain inet enclave_agent to_host",
        "insert rule inet enclave_agent through_host accept",
        "add element inet enclave_agent exact { 192.0.2.9 . 1 : 192.0.2.8 . 1 }",
        "add chain inet enclave_agent to_host { policy drop ; }",
        "flush set inet enclave_agent orders",
        "delete table inet enclave_agent",
        "flush ruleset",
    ],
)
async def test_a_table_changed_by_hand_is_not_in_force_until_it_is_mended(
    host: NftablesWorld, traffic: NftablesTraffic, damage: str
) -> None:
    listen, other = free_listen(), free_listen()
    wanted = order(4, (listen, host.endpoint("blue")))
    theirs = order(1, (other, host.endpoint("green")), deployment="other")
    await traffic.apply(wanted)
    await traffic.apply(theirs)
    nft(damage)
    assert await traffic.observe() == {}
    await traffic.apply(wanted)
    await traffic.apply(theirs)
    assert await traffic.observe() == {wanted.deployment: wanted, theirs.deployment: theirs}
    assert [await ask(listen), await ask(other)] == ["blue", "green"]


async def test_a_start_with_other_rules_keeps_connections_coming(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    listen = free_listen()
    wanted = order(4, (listen, host.endpoint("blue")))
    await traffic.apply(wanted)
    done, answers = asyncio.Event(), []

    async def load() -> None:
        while not done.is_set():
            answers.append(await ask(listen))

    async with connected(listen) as held, asyncio.TaskGroup() as group:
        await who(held)
        clients = [group.create_task(load()) for _ in range(4)]
        for port in range(1, 11):
            upgraded = host.traffic((port,))
            await upgraded.start()
            assert await upgraded.observe() == {wanted.deployment: wanted}
        done.set()
        assert await who(held) == "blue"
    assert all(one.exception() is None for one in clients)
    assert set(answers) == {"blue"}


async def test_a_start_changes_nothing_that_is_as_it_should_be(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    await traffic.apply(order(4, (free_listen(), host.endpoint("blue"))))
    commands: list[Sequence[str]] = []

    async def noting(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        commands.append(argv)
        return await run_command(argv, stdin=stdin, timeout_s=timeout_s)

    again = NftablesTraffic(
        BRIDGE, "10.99.7.0/24", (), state_file=host.state_file, run_command=noting
    )
    await again.start()
    # Two tables of the routes, one of the egress policy.
    assert [argv[:3] for argv in commands] == [["nft", "-j", "list"]] * 3


async def test_an_order_takes_one_transaction_and_nothing_else(
    host: NftablesWorld,
) -> None:
    commands: list[Sequence[str]] = []

    async def noting(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        commands.append(argv)
        return await run_command(argv, stdin=stdin, timeout_s=timeout_s)

    traffic = NftablesTraffic(
        BRIDGE, "10.99.7.0/24", (), state_file=host.state_file, run_command=noting
    )
    await traffic.start()
    listen = free_listen()
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    commands.clear()
    await traffic.apply(order(2, (listen, host.endpoint("green"))))
    assert commands == [["nft", "-f", "-"]]


async def test_a_dead_agents_late_transaction_cannot_undo_a_newer_order(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    """The nft that a killed agent left behind may commit when its successor has long decided."""
    listen = free_listen()
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    held: list[bytes] = []

    async def late(
        argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 10.0
    ) -> CompletedCommand:
        if stdin:
            held.append(stdin)
            await asyncio.Event().wait()
        return await run_command(argv, timeout_s=timeout_s)

    dead = NftablesTraffic(
        BRIDGE, "10.99.7.0/24", (), state_file=host.state_file, run_command=late
    )
    dying = asyncio.create_task(dead.apply(order(2, (listen, host.endpoint("blue", 1)))))
    while not held:
        await asyncio.sleep(0)
    dying.cancel()
    newest = order(3, (listen, host.endpoint("green")))
    await traffic.apply(newest)
    assert (await run_command(["nft", "-f", "-"], stdin=held[0])).status != 0
    assert await traffic.observe() == {newest.deployment: newest}


async def test_a_writer_that_is_behind_looks_again(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    listen = free_listen()
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    other = host.traffic()
    await other.start()
    await other.apply(order(5, (listen, host.endpoint("green"))))
    with pytest.raises(StaleGenerationError):
        await traffic.apply(order(4, (listen, host.endpoint("blue"))))
    assert await ask(listen) == "green"
    await other.apply(order(6, (listen, host.endpoint("blue"))))
    await traffic.apply(order(7, (listen, host.endpoint("green"))))
    assert await ask(listen) == "green"


async def test_guests_reach_neither_host_nor_each_other(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote, blue: Remote
) -> None:
    published = Listen(address="0.0.0.0", port=8444)
    await traffic.apply(order(1, (published, host.endpoint("green"))))
    with socket.create_server(("0.0.0.0", 8080)), socket.create_server((GATEWAY, 8081)):
        ip("route add 10.99.7.3/32 via 10.99.7.1", host.servers["blue"].pid)
        for address, port in (
            (GATEWAY, 8080),
            (GATEWAY, 8081),
            (OUTSIDE, 8080),
            (GATEWAY, 8444),
            (OUTSIDE, 8444),
            ("10.99.7.3", PORTS[0]),
        ):
            assert blue.outcome(address, port) == "refused", (address, port)


async def test_guests_datagrams_reach_neither_host_nor_each_other(
    host: NftablesWorld, traffic: NftablesTraffic, blue: Remote
) -> None:
    assert blue.datagram(GATEWAY, 53) == "prohibited"
    ip(f"route add 10.99.7.3/32 via {GATEWAY}", host.servers["blue"].pid)
    # The kernel limits how often it says so; a guest that was reached would answer "closed".
    assert blue.datagram("10.99.7.3", 53) in {"prohibited", "unanswered"}


async def test_guests_reach_the_hosts_named_ports(host: NftablesWorld, blue: Remote) -> None:
    traffic = host.traffic((8080,))
    await traffic.start()
    with socket.create_server((GATEWAY, 8080)), socket.create_server((GATEWAY, 8081)):
        assert blue.outcome(GATEWAY, 8080) == "connected"
        assert blue.outcome(GATEWAY, 8081) == "refused"


async def test_guests_reach_no_loopback_service_of_the_host(
    host: NftablesWorld, traffic: NftablesTraffic, blue: Remote
) -> None:
    """Loopback addresses are routed on the bridge, for the host's own sake alone."""
    with socket.create_server(("127.0.0.1", 8080)):
        blue.send_loopback_to(GATEWAY)
        assert blue.outcome("127.0.0.1", 8080) == "timed out"


async def test_guests_reach_nothing_of_the_host_by_ipv6(
    host: NftablesWorld, traffic: NftablesTraffic, blue: Remote
) -> None:
    add_ipv6("fd00:99::1/64", BRIDGE)
    pid = host.servers["blue"].pid
    add_ipv6("fd00:99::2/64", "eth0", pid)
    mac = ip(f"-br link show {BRIDGE}").split()[2]
    ip(f"neigh replace fd00:99::1 lladdr {mac} dev eth0", pid)
    guest = ip("-br link show eth0", pid).split()[2]
    ip(f"neigh replace fd00:99::2 lladdr {guest} dev {BRIDGE}")
    with socket.create_server(("::", 8080), family=socket.AF_INET6):
        assert blue.outcome("fd00:99::1", 8080) == "refused"


async def test_guests_reach_the_world_by_the_hosts_address(
    host: NftablesWorld, client: Remote, traffic: NftablesTraffic, blue: Remote
) -> None:
    with client.server(7000):
        assert blue.ask(CLIENT, 7000) == f"remote {OUTSIDE}"


async def test_the_world_reaches_guests_by_listeners_alone(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    listen = Listen(address=OUTSIDE, port=8443)
    await traffic.apply(order(1, (listen, host.endpoint("blue"))))
    assert client.outcome("10.99.7.2", PORTS[0]) == "refused"
    assert client.outcome(OUTSIDE, 8443) == "connected"


async def test_the_host_probes_its_guests_directly(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    blue = host.endpoint("blue")
    assert await ask(Listen(address=blue.address, port=blue.port)) == "blue"


async def test_reset_reaches_idle_clients_by_every_way_in(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    exact, wildcard = Listen(address=OUTSIDE, port=8443), Listen(address="0.0.0.0", port=8444)
    endpoint = host.endpoint("blue")
    await traffic.apply(order(1, (exact, endpoint), (wildcard, endpoint)))
    async with contextlib.AsyncExitStack() as stack:
        local = [
            await stack.enter_async_context(connected(Listen(address=address, port=8444)))
            for address in (OUTSIDE, GATEWAY, "127.0.0.1")
        ]
        local.append(await stack.enter_async_context(connected(exact)))
        for streams in local:
            await who(streams)
        client.hold(OUTSIDE, 8443)
        client.hold(OUTSIDE, 8444)
        assert await traffic.connections(endpoint) == 6
        assert await traffic.reset(endpoint) == 6
        for reader, _ in local:
            async with asyncio.timeout(1):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        assert client.held() == ["reset", "reset"]
    assert "elements" not in ruleset("set", "inet", "enclave_agent", "resetting")
    listing = subprocess.run(["conntrack", "-L"], capture_output=True, text=True, check=True)
    assert "ESTABLISHED" not in listing.stdout
    assert "CLOSE" not in listing.stdout


async def test_reset_reaches_a_client_that_closed_its_half(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    listen, endpoint = free_listen(), host.endpoint("blue")
    await traffic.apply(order(1, (listen, endpoint)))
    async with connected(listen) as (reader, writer):
        assert await say((reader, writer), "hang") == "hanging"
        writer.write_eof()
        assert await traffic.connections(endpoint) == 1
        assert await traffic.reset(endpoint) == 1
        async with asyncio.timeout(1):
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_reset_gives_up_a_client_that_is_out_of_reach(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    listen, endpoint = Listen(address=OUTSIDE, port=8443), host.endpoint("blue")
    await traffic.apply(order(1, (listen, endpoint)))
    client.hold(OUTSIDE, 8443)
    await traffic.apply(order(2, (listen, host.endpoint("green"))))
    ip("link set trtclient down")
    async with asyncio.timeout(10):
        assert await traffic.reset(endpoint) == 1
    assert await traffic.connections(endpoint) == 0
    ip("link set trtclient up")
    assert client.held(say="hello") == ["reset"]


async def test_a_connection_that_a_dead_guest_left_unanswered_is_refused_at_its_next_try(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    listen, endpoint = free_listen(), host.endpoint("blue")
    await traffic.apply(order(1, (listen, endpoint)))
    there = f"{endpoint.address} lladdr 02:00:00:00:00:02 dev {BRIDGE}"
    ip(f"neighbour replace {there} nud permanent")
    ip("link set trtblue down")
    begun = asyncio.create_task(asyncio.open_connection(listen.address, listen.port))
    await asyncio.sleep(0.1)
    assert not begun.done()
    await traffic.apply(order(2, (listen, None)))
    assert await traffic.reset(endpoint) == 0
    async with asyncio.timeout(2):  # a client sends its SYN again after one
        with pytest.raises(ConnectionRefusedError):
            await begun


async def test_what_a_killed_agent_was_resetting_is_cleared_at_the_next_start(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    listen, endpoint = free_listen(), host.endpoint("blue")
    wanted = order(1, (listen, endpoint))
    await traffic.apply(wanted)
    nft(f"add element inet enclave_agent resetting {{ 10.99.7.2 . {endpoint.port} }}")
    again = host.traffic()
    await again.start()
    assert await again.observe() == {wanted.deployment: wanted}
    assert await ask(listen) == "blue"


async def test_connections_are_counted_without_the_conntrack_tool(
    host: NftablesWorld, traffic: NftablesTraffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = host.directory / "bin"
    tools.mkdir()
    (tools / "nft").symlink_to(shutil.which("nft") or "")
    monkeypatch.setenv("PATH", str(tools))
    listen, endpoint = free_listen(), host.endpoint("blue")
    await traffic.apply(order(1, (listen, endpoint)))
    async with connected(listen) as streams:
        await who(streams)
        assert await traffic.connections(endpoint) == 1
        assert await traffic.reset(endpoint) == 1
        with pytest.raises(ConnectionResetError):
            await streams[0].read()


async def test_a_missing_nft_is_named(
    host: NftablesWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(host.directory))
    assert "nft" in (await probe_nftables() or "")
    with pytest.raises(TrafficError):
        await host.traffic().start()


async def test_a_host_that_can_is_found_able_and_left_as_it_was(host: NftablesWorld) -> None:
    before = ruleset(), sysctls()
    assert await probe_nftables() is None
    assert (ruleset(), sysctls()) == before


@pytest.mark.parametrize(
    ("listen", "endpoint", "name"),
    [
        (("127.0.0.1 . 1 }; flush ruleset", 80), ("10.99.7.2", 1), "hello"),
        (("127.0.0.1", 80), ("10.99.7.2 }", 1), "hello"),
        (("127.0.0.1", 80), ("10.99.7.2", 1), 'a" }; flush ruleset; #'),
        (("::1", 80), ("10.99.7.2", 1), "hello"),
    ],
)
async def test_nothing_that_is_not_an_address_or_a_name_gets_into_the_kernel(
    host: NftablesWorld,
    traffic: NftablesTraffic,
    listen: tuple[str, int],
    endpoint: tuple[str, int],
    name: str,
) -> None:
    before = ruleset()
    bad = order(
        1,
        (Listen(address=listen[0], port=listen[1]), host.endpoint("blue")),
        deployment=name,
    )
    target = type(host.endpoint("blue"))(address=endpoint[0], port=endpoint[1])
    binding = type(bad.bindings[0])(listen=bad.bindings[0].listen, endpoints=(target,))
    bad = type(bad)(deployment=bad.deployment, generation=1, bindings=(binding,))
    with pytest.raises(TrafficError):
        await traffic.apply(bad)
    assert ruleset() == before


async def test_ipv6_is_refused_with_a_sentence(host: NftablesWorld) -> None:
    traffic = host.traffic()
    assert "IPv6" in (traffic.refusal(Listen(address="::", port=80)) or "")
    assert traffic.refusal(Listen(address="0.0.0.0", port=80)) is None


async def test_a_thousand_listeners_are_read_back(
    host: NftablesWorld, traffic: NftablesTraffic
) -> None:
    wanted = order(
        1,
        *(
            (Listen(address="127.0.0.2", port=20000 + n), host.endpoint("blue"))
            for n in range(500)
        ),
    )
    await traffic.apply(wanted)
    assert await traffic.observe() == {wanted.deployment: wanted}


@pytest.fixture
def router(host: NftablesWorld) -> Iterator[None]:
    """The host forwards for others; else our table lets nothing through but what is guests'."""
    del host  # which has its network
    forwarding = Path("/proc/sys/net/ipv4/conf/all/forwarding")
    before = forwarding.read_text()
    forwarding.write_text("1")
    yield
    forwarding.write_text(before)


@pytest.mark.usefixtures("router")
async def test_an_address_that_is_not_the_hosts_is_never_answered_for(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    """Neither to the host's own programs nor to whom it routes for; wildcard and exact alike."""
    elsewhere, blue = "198.51.100.7", host.endpoint("blue")
    exact, wildcard = Listen(address=elsewhere, port=8443), Listen(address="0.0.0.0", port=8444)
    with Remote() as machine:
        join(machine.pid, link="trtother", address=f"{elsewhere}/24", gateway="198.51.100.1")
        ip("addr add 198.51.100.1/24 dev trtother")
        with machine.server(8443), machine.server(8444):
            for generation, there in enumerate((blue, None)):  # it serves; it is stopped
                await traffic.apply(order(generation, (exact, there), (wildcard, there)))
                for port in (8443, 8444):
                    assert await ask(Listen(address=elsewhere, port=port)) == "remote"
                    assert client.ask(elsewhere, port) == f"remote {CLIENT}"


async def test_an_address_that_comes_and_goes_is_served_while_it_is_here(
    host: NftablesWorld, traffic: NftablesTraffic, client: Remote
) -> None:
    """A virtual address moves between hosts; nothing is applied when it does."""
    floating = "192.0.2.77"
    await traffic.apply(order(1, (Listen(address=floating, port=8443), host.endpoint("blue"))))
    assert client.outcome(floating, 8443) != "connected"
    for _ in range(2):
        ip(f"addr add {floating}/32 dev trtclient")
        assert client.ask(floating, 8443) == f"blue {CLIENT}"
        ip(f"addr del {floating}/32 dev trtclient")
        assert client.outcome(floating, 8443) != "connected"
