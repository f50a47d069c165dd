"""What several tests of the API send: bodies, good and wrong, and requests of ill will."""

from __future__ import annotations

from typing import Any

DEPLOY: dict[str, Any] = {"tag": "v1.0.0", "listen": "127.0.0.1:8443"}
_BIG = "x" * (64 * 1024 + 1)

# (what is changed in a good request, the field that the answer must name)
WRONG_DEPLOY: list[tuple[dict[str, Any], str]] = [
    ({"tag": ""}, "tag"),
    ({"tag": None}, "tag"),
    ({"tag": "../../etc"}, "tag"),
    ({"tag": "v1\n"}, "tag"),
    ({"tag": "a,b"}, "tag"),
    ({"tag": "x" * 200}, "tag"),
    ({"tag": 1}, "tag"),
    ({"listen": "8443"}, "listen"),
    ({"listen": "127.0.0.1"}, "listen"),
    ({"listen": "127.0.0.1:0"}, "listen"),
    ({"listen": "127.0.0.1:65536"}, "listen"),
    ({"listen": "localhost:80"}, "listen"),
    ({"listen": "::1:80"}, "listen"),
    ({"listen": "127.0.0.1:80\n"}, "listen"),
    ({"listen": "1" * 1_000_000}, "listen"),
    ({"listen": ["127.0.0.1:80"]}, "listen"),
    ({"publish": {}}, "publish"),
    ({"publish": [{}]}, "publish[0].listen"),
    ({"publish": [{"listen": "x", "guest_port": 80}]}, "publish[0].listen"),
    ({"publish": [{"listen": "127.0.0.1:80", "guest_port": 0}]}, "publish[0].guest_port"),
    ({"publish": [{"listen": "127.0.0.1:80", "guest_port": "80"}]}, "publish[0].guest_port"),
    (
        {"publish": [{"listen": "127.0.0.1:80", "guest_port": 80, "x": 1}]},
        "publish[0].x",
    ),
    ({"publish": [{"listen": "127.0.0.1:80", "guest_port": 80}] * 65}, "publish"),
    ({"repo": "a/b/c"}, "repo"),
    ({"repo": "../x"}, "repo"),
    ({"domain": "not a name"}, "domain"),
    ({"domain": "UPPER.example"}, "domain"),
    ({"probes": "/health"}, "probes"),
    ({"probes": {"port": 1}}, "probes.port"),
    ({"probes": {"path": ""}}, "probes.path"),
    ({"probes": {"path": "health"}}, "probes.path"),
    ({"probes": {"path": "/v1/*"}}, "probes.path"),
    ({"probes": {"path": "/a b"}}, "probes.path"),
    ({"probes": {"path": "/a\r\nHost: b"}}, "probes.path"),
    ({"probes": {"path": "/a\n"}}, "probes.path"),
    ({"probes": {"path": "/a#b"}}, "probes.path"),
    ({"probes": {"path": "/a%2f"}}, "probes.path"),
    ({"probes": {"path": "//a"}}, "probes.path"),
    ({"probes": {"path": "/a/../b"}}, "probes.path"),
    ({"probes": {"path": "/" + "a" * 256}}, "probes.path"),
    ({"probes": {"path": "https://a.example/health"}}, "probes.path"),
    ({"probes": {"path": 1}}, "probes.path"),
    ({"probes": {"host": ""}}, "probes.host"),
    ({"probes": {"host": "a b"}}, "probes.host"),
    ({"probes": {"host": "a.example\n"}}, "probes.host"),
    ({"probes": {"host": "a.example:0"}}, "probes.host"),
    ({"probes": {"host": "a.example/x"}}, "probes.host"),
    ({"probes": {"host": "-a.example"}}, "probes.host"),
    ({"probes": {"host": "a" * 64}}, "probes.host"),
    ({"variables": []}, "variables"),
    ({"variables": {"1A": "x"}}, "variables.1A"),
    ({"variables": {"A=B": "x"}}, "variables.A=B"),
    ({"variables": {"A": None}}, "variables.A"),
    ({"variables": {"A": "x", "B": 1}}, "variables.B"),
    ({"variables": {"A": "nul\0"}}, "variables.A"),
    ({"variables": {"A": _BIG}}, "variables.A"),
    ({"variables": {f"A{n}": "" for n in range(257)}}, "variables"),
    ({"secrets": {"": "x"}}, "secrets."),
    ({"secrets": {"KEY": _BIG}}, "secrets.KEY"),
    ({"secrets": {"KEY": {"nested": "x"}}}, "secrets.KEY"),
    ({"staging": "yes"}, "staging"),
    ({"lease": "x"}, "lease"),
    ({"nonsense": 1}, "nonsense"),
]

# Names that lead out of where they stand, as they come over the wire.
LEADING_ELSEWHERE = ("..%2f..%2fetc", "%2e%2e", "a%00b", "a%0d%0ab", "A", "x" * 64)

# Heads that one reader ends here and another there.
READ_IN_TWO_WAYS = (
    "Content-Length: 2\r\nTransfer-Encoding: chunked",
    "Content-Length: 2\r\nContent-Length: 30",
    "Content-Length: +2",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding : chunked",
    "Content-Length: 2\r\n\tfolded: x",
    "Evil\rName: x",
)


def elsewhere(name: str) -> bytes:
    """A request to change something under such a name."""
    path = f"/v1/deployments/{name}/updates"
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nCoordinator-Epoch: 1\r\nConnection: close"
    return f"{head}\r\n\r\n".encode()


def smuggling(head: str) -> bytes:
    """A request with such a head, and a second one hidden in its body."""
    smuggled = "{}POST /v1/host/drain HTTP/1.1\r\nHost: a\r\nCoordinator-Epoch: 1\r\n\r\n"
    begin = "PUT /v1/deployments/web HTTP/1.1\r\nHost: a\r\nCoordinator-Epoch: 1\r\n"
    data = f"{begin}Content-Type: application/json\r\n{head}\r\n\r\n{smuggled}"
    return data.encode("latin-1")
