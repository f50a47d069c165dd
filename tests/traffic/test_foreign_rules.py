"""Other programs' packet filters: what the agent says of them is what the kernel does."""

from __future__ import annotations

import ipaddress
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from agent.host.network_news import NetworkProblem
from agent.model.resources import Listen
from agent.traffic.foreign_problems import problems
from agent.traffic.foreign_rules import chains_of, forwarding_tables
from agent.traffic.foreign_watch import ForeignRules
from tests.fakes import foreign_rules as theirs
from tests.fakes.netns import ip, join
from tests.traffic.remote import Remote
from tests.traffic.worlds import (
    BRIDGE,
    CLIENT,
    OUTSIDE,
    SUBNET,
    NftablesWorld,
    order,
)

TABLE = "enclave_agent"
UPLINK = "trtclient"
LISTEN = Listen(address=OUTSIDE, port=8443)
BACK = 7000  # what guests ask for outside
IPTABLES = shutil.which("iptables")


@pytest.fixture
def client(host: NftablesWorld) -> Iterator[Remote]:
    """A machine outside."""
    with Remote() as remote:
        join(remote.pid, link=UPLINK, address=f"{CLIENT}/24", gateway=OUTSIDE)
        ip(f"addr add {OUTSIDE}/24 dev {UPLINK}")
        with remote.server(BACK):
            yield remote


@pytest.fixture
def blue(host: NftablesWorld) -> Iterator[Remote]:
    with Remote(host.servers["blue"].pid) as remote:
        yield remote


def load(rules: str) -> None:
    """By nft, or by a shell where they are commands."""
    text = rules.format(bridge=BRIDGE, uplink=UPLINK)
    argv = ["sh", "-e"] if "iptables" in text else ["nft", "-f", "-"]
    subprocess.run(argv, input=text, text=True, check=True)


def drop(rules: str) -> None:
    """Everything but our own tables."""
    if "iptables" in rules:
        text = "iptables -P FORWARD ACCEPT; iptables -F; iptables -X; iptables -t nat -F"
        subprocess.run(["sh", "-ec", text], check=True)
    for family, name in re.findall(r"add table (\S+) (\S+)", rules):
        subprocess.run(["nft", "delete", "table", family, name], check=True)


def foreign() -> ForeignRules:
    return ForeignRules(BRIDGE, SUBNET, TABLE)


async def told() -> NetworkProblem | None:
    found = await foreign().look()
    assert len(found) <= 1, found
    return next(iter(found.values()), None)


def carry_out(mend: str) -> None:
    """The commands of a remedy, as a person would."""
    (command, *_) = re.findall(r"`([^`]+)`", mend)
    subprocess.run(["sh", "-ec", command], check=True)


CLIENTS, WORLD, BOTH = "clients elsewhere", "guests do not reach the world", " and "
RULES = {
    "docker": (theirs.DOCKER, (CLIENTS, WORLD), "iptables -I DOCKER-USER", None),
    "ufw": (theirs.UFW, (CLIENTS, WORLD), "ufw route allow in on", theirs.UFW_ALLOWS),
    "ufw that rejects": (theirs.UFW_REJECTS, (CLIENTS, WORLD), "ufw route", theirs.UFW_ALLOWS),
    "firewalld": (theirs.FIREWALLD, (WORLD,), "firewall-cmd", theirs.FIREWALLD_TRUSTS),
    "libvirt": (theirs.LIBVIRT, (), "", None),
    "wireguard": (theirs.WIREGUARD, (), "", None),
    "iptables": ("iptables -P FORWARD DROP", (CLIENTS, WORLD), "iptables -I FORWARD", None),
    "a drop at a later priority": (theirs.LATER_DROP, (CLIENTS, WORLD), "nft insert rule", None),
    "a map of verdicts": (theirs.VMAP_DROP, (CLIENTS, WORLD), "nft insert rule", None),
    "somebody who knows us": (theirs.MASTERED, (), "", None),
}


@pytest.mark.root
async def test_what_is_said_of_their_rules_is_what_the_kernel_does(
    host: NftablesWorld, client: Remote, blue: Remote
) -> None:
    traffic = host.traffic()
    await traffic.start()
    await traffic.apply(order(1, (LISTEN, host.endpoint("blue"))))
    assert await told() is None
    assert client.outcome(OUTSIDE, 8443) == "connected"
    for name, (rules, cut, remedy, theirs_then) in RULES.items():
        if "iptables" in rules and IPTABLES is None:
            continue
        load(rules)
        problem = await told()
        clients, world = client.outcome(OUTSIDE, 8443), blue.outcome(CLIENT, BACK)
        assert (clients != "connected", world != "connected") == (CLIENTS in cut, WORLD in cut), (
            name,
            problem,
        )
        assert (problem is not None) == bool(cut), name
        if problem is not None:
            assert all(word in problem.detail for word in cut), (name, problem)
            assert problem.code == "forward_dropped"
            assert problem.severity == ("error" if CLIENTS in cut else "warning")
            assert remedy in problem.mend, name
            load(theirs_then) if theirs_then else carry_out(problem.mend)
            assert await told() is None, name
            assert client.outcome(OUTSIDE, 8443) == "connected", name
            assert blue.outcome(CLIENT, BACK) == "connected", name
        drop(rules)
    assert await told() is None


@pytest.mark.root
@pytest.mark.skipif(shutil.which("iptables-legacy") is None, reason="no iptables-legacy here")
async def test_the_older_iptables_is_read_from_the_kernel(
    host: NftablesWorld, client: Remote
) -> None:
    traffic = host.traffic()
    await traffic.start()
    await traffic.apply(order(1, (LISTEN, host.endpoint("blue"))))
    load(theirs.DOCKER.replace("iptables ", "iptables-legacy "))
    problem = await told()
    assert problem is not None
    assert "filter of iptables-legacy, chain FORWARD, by its policy" in problem.detail
    assert client.outcome(OUTSIDE, 8443) == "timed out"
    carry_out(problem.mend)
    assert await told() is None
    assert client.outcome(OUTSIDE, 8443) == "connected"


@pytest.mark.root
async def test_a_table_of_an_agent_without_its_bridge_is_told(host: NftablesWorld) -> None:
    for name in ("enclave_agent", "enclave_agent_vgone", f"enclave_agent_{BRIDGE}"):
        subprocess.run(["nft", "add", "table", "inet", name], check=True)
    problem = await told()
    assert problem is not None
    assert problem.code == "table_left_behind"
    assert "enclave_agent_vgone" in problem.detail
    assert "nft delete table inet enclave_agent_vgone" in problem.mend


def listing(*rules: list[object], policy: str = "accept") -> list[dict[str, object]]:
    """One table as nft lists it."""
    of = {"family": "ip", "table": "filter"}
    chain = {**of, "name": "FORWARD", "hook": "forward", "policy": policy}
    return [
        {"chain": chain},
        *(
            {"rule": {**of, "chain": "FORWARD", "handle": n, "expr": expr}}
            for n, expr in enumerate(rules, 1)
        ),
    ]


def match(key: str, right: object, op: str = "==") -> dict[str, object]:
    return {"match": {"op": op, "left": {"meta": {"key": key}}, "right": right}}


UNKNOWN = [{"xt": None}, {"xt": {"type": "match", "name": "set"}}, {"limit": {"rate": 1}}]
UNKNOWN += [{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 1}}]
UNKNOWN += [
    {
        "match": {
            "op": "==",
            "left": {"payload": {"protocol": "ip", "field": "saddr"}},
            "right": "@s",
        }
    }
]


def judged(items: list[dict[str, object]], uplinks: tuple[str, ...] = ("eth0",)) -> list[str]:
    found = problems(
        chains_of(items),
        bridge="enc0",
        guests=ipaddress.IPv4Network("10.0.0.0/24"),
        uplinks=uplinks,
    )
    return [one.detail for one in found.values()]


@pytest.mark.parametrize("unknown", UNKNOWN, ids=str)
def test_a_rule_that_is_not_understood_drops_nothing_and_accepts_only_what_it_names(
    unknown: dict[str, object],
) -> None:
    assert judged(listing([unknown, {"drop": None}])) == []
    assert judged(listing([unknown, {"accept": None}], policy="drop")) != []
    both = [
        [unknown, match("iifname", "enc0"), {"accept": None}],
        [unknown, match("oifname", "enc*"), {"accept": None}],
    ]
    assert judged(listing(*both, policy="drop")) == []
    assert judged(
        listing([unknown, match("iifname", "enc0", "!="), {"accept": None}], policy="drop")
    )


def test_a_drop_by_one_of_several_uplinks_is_no_problem_while_another_serves() -> None:
    items = listing([match("iifname", "eth1"), {"drop": None}])
    assert judged(items, ("eth0", "eth1")) == []
    assert judged(items, ("eth1",)) != []
    assert judged(items, ()) == []
    assert judged(listing([{"drop": None}]), ()) != []


def test_a_wildcard_is_not_taken_for_a_rule_about_us() -> None:
    rules = [[{"xt": None}, match("oifname", "*"), {"accept": None}]]
    assert judged(listing(*rules, policy="drop")) != []


@pytest.mark.parametrize(
    ("right", "drops"),
    [
        ({"prefix": {"addr": "10.0.0.0", "len": 8}}, True),
        ({"prefix": {"addr": "10.0.0.0", "len": 25}}, False),
        ({"prefix": {"addr": "10.9.0.0", "len": 16}}, False),
        ("10.0.0.7", False),
        ({"range": ["10.0.0.0", "10.0.0.255"]}, False),
        ("nonsense", False),
    ],
)
def test_a_drop_of_guests_addresses_counts_if_it_holds_of_all(right: object, drops: bool) -> None:
    left = {"payload": {"protocol": "ip", "field": "daddr"}}
    rule = [{"match": {"op": "==", "left": left, "right": right}}, {"drop": None}]
    assert bool(judged(listing(rule))) is drops


def test_chains_that_call_each_other_come_to_an_end() -> None:
    assert judged(listing([{"jump": {"target": "FORWARD"}}], policy="accept")) == []
    assert judged(listing([{"jump": {"target": "gone"}}], policy="drop")) != []


def test_only_tables_of_ipv4_that_forward_are_read() -> None:
    rows = [
        ("ip", "filter", "forward"),
        ("ip6", "filter", "forward"),
        ("inet", "fw", "input"),
        ("bridge", "x", "forward"),
        ("inet", "fw2", "forward"),
        ("inet", "fw2", None),
    ]
    items = [{"chain": {"family": f, "table": t, "name": "c", "hook": h}} for f, t, h in rows]
    assert forwarding_tables(items) == [("inet", "fw2"), ("ip", "filter")]
