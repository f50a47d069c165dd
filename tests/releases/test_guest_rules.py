"""What a guest refuses of its config is known before it boots.

Held against the public image's own tests (tinfoil/internal/runtimeconfig/validation_test.go and
internal/config/config_test.go of 0.11.0), case by case, and the container engine's refusals.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.releases.guest_rules.check import check_config, refusals
from tests.fakes.guest_releases import config_of
from tests.fakes.release_parts import CONFIG

CONFIGS = Path(__file__).resolve().parents[3] / "shared" / "configs"
APP = "containers[0]"
PINNED = "registry.test/app@sha256:" + "a" * 64

VALID: dict[str, Any] = {
    "cvm-version": "0.11.0",
    "cpus": 2,
    "memory": 1024,
    "networks": {"app": {"egress": "closed"}, "out": {"egress": "open"}, "web": None},
    "containers": [
        {
            "name": "app",
            "image": PINNED,
            "networks": ["app"],
            "env": ["REGION", {"LEVEL": "info"}],
            "secrets": ["API_KEY"],
        }
    ],
    "shim": {"upstream-port": 8080},
}

Edit = Callable[[dict[str, Any]], Any]


def found(edit: Edit | None = None, version: str = "0.11.0") -> list[tuple[str, str, bool]]:
    config = copy.deepcopy(VALID) | {"cvm-version": version}
    if edit is not None:
        edit(config)
    text = json.dumps(config, default=str).encode()
    return [(one.path, one.text, one.sure) for one in check_config(text)]


def app(**fields: Any) -> Edit:
    return lambda config: config["containers"][0].update(fields)


def shim(**fields: Any) -> Edit:
    named = {name.replace("_", "-"): value for name, value in fields.items()}
    return lambda config: config["shim"].update(named)


def top(**fields: Any) -> Edit:
    return lambda config: config.update({n.replace("_", "-"): v for n, v in fields.items()})


def network(**fields: Any) -> Edit:
    return lambda config: config["networks"].update(app=fields)


def gpus(count: int, **fields: Any) -> Edit:
    return lambda config: (config.update(gpus=count), config["containers"][0].update(fields))


def without(name: str) -> Edit:
    return lambda config: config["containers"][0].pop(name)


REFUSED: list[tuple[Edit, str, str]] = [
    (top(unknown=True), "unknown", "of this version"),
    (top(cntainers=[]), "cntainers", "did you mean containers?"),
    (top(shim_version="v1"), "shim-version", "leave it out"),
    (app(typo=True), f"{APP}.typo", "no field"),
    (app(comand=["a"]), f"{APP}.comand", "did you mean command?"),
    (app(registry={"username": "u"}), f"{APP}.registry", "of this version"),
    (app(ports=["8080"]), f"{APP}.ports", "of this version"),
    (app(healthcheck={"test": ["CMD", "ok"], "retrise": 3}), f"{APP}.healthcheck.retrise", "retr"),
    (app(image="registry.test/app:latest"), f"{APP}.image", "by its digest"),
    (app(image="registry.test/app@sha256:abc"), f"{APP}.image", "64 hex digits"),
    (app(image="registry.test/App@sha256:" + "a" * 64), f"{APP}.image", "small letters"),
    (app(image="registry.test/app@sha256:" + "0" * 64), f"{APP}.image", "holds a place"),
    (without("image"), f"{APP}.image", "is missing"),
    (app(privileged=True), f"{APP}.privileged", "no privileged"),
    (app(privileged=False), f"{APP}.privileged", "no privileged"),
    (app(cap_drop=["ALL"]), f"{APP}.cap_drop", "leave it out"),
    (app(security_opt=["x"]), f"{APP}.security_opt", "leave it out"),
    (app(ipc="host"), f"{APP}.ipc", "private or none"),
    (app(pid="host"), f"{APP}.pid", "process namespace"),
    (app(devices=["/dev/kvm"]), f"{APP}.devices", "no devices"),
    (app(runtime="attacker.runc.v2"), f"{APP}.runtime", "nvidia"),
    (app(gpus="all"), f"{APP}.gpus", "has none"),
    (gpus(2, runtime="nvidia"), f"{APP}.gpus", "needs it"),
    (gpus(2, gpus="all"), f"{APP}.gpus", "runtime: nvidia"),
    (gpus(2, runtime="nvidia", gpus=-1), f"{APP}.gpus", "1 to 2"),
    (gpus(2, runtime="nvidia", gpus=0), f"{APP}.gpus", "1 to 2"),
    (gpus(2, runtime="nvidia", gpus=3), f"{APP}.gpus", "1 to 2"),
    (gpus(2, runtime="nvidia", gpus="0,2"), f"{APP}.gpus", "from 0 to 1"),
    (gpus(2, runtime="nvidia", gpus="1,1"), f"{APP}.gpus", "each once"),
    (gpus(2, runtime="nvidia", gpus=True), f"{APP}.gpus", "a count"),
    (gpus(2, runtime="nvidia", gpus="0,"), f"{APP}.gpus", "each once"),
    (app(cap_add=["SETUID"]), f"{APP}.cap_add[0]", "IPC_LOCK"),
    (app(volumes=["/run/docker.sock:/var/run/docker.sock"]), f"{APP}.volumes[0]", "NAME:PATH"),
    (app(volumes=["data"]), f"{APP}.volumes[0]", "NAME:PATH"),
    (app(cpus=4), f"{APP}.cpus", "no more"),
    (app(cpus="1"), f"{APP}.cpus", "a number"),
    (app(memory="1m"), f"{APP}.memory", "6m at least"),
    (app(memory="much"), f"{APP}.memory", "512m"),
    (app(command="serve --all"), f"{APP}.command", "a list of texts"),
    (app(tmpfs=["/tmp"]), f"{APP}.tmpfs", "a map of texts"),
    (app(read_only="yes"), f"{APP}.read_only", "true or false"),
    (app(restart="on-failure:3"), f"{APP}.restart", "on-failure"),
    (app(env=[{"A": None}]), f"{APP}.env[0]", "plain value"),
    (app(networks=["missing"]), f"{APP}.networks[0]", "no network of this config"),
    (app(networks=["app", "app"]), f"{APP}.networks[1]", "twice"),
    (app(networks=["shim-net"]), f"{APP}.networks[0]", "the shim's own"),
    (app(name="tinfoil-debug-toolbox"), f"{APP}.name", "reserved"),
    (network(egress="sometimes"), "networks.app.egress", "closed, allowlist, open"),
    (network(egres="open"), "networks.app.egres", "did you mean egress?"),
    (network(egress="allowlist", allow=["*.test"]), "networks.app.allow[0]", "no '*'"),
    (network(egress="allowlist", allow=["10.0.0.1"]), "networks.app.allow[0]", "no address"),
    (network(egress="open", allow=["a.test"]), "networks.app.allow", "allowlist"),
    (top(networks={"shim-net": None}), "networks.shim-net", "the shim's own"),
    (top(networks={"Name": None}), "networks.Name", "15 characters"),
    (top(memory=16), "memory", "MiB"),
    (shim(upstream_port=0), "shim.upstream-port", "is missing"),
    (shim(upstream_port=70000), "shim.upstream-port", "1 to 65535"),
    (shim(upstream_container="other"), "shim.upstream-container", "no container other"),
    (shim(tls_mode="none"), "shim.tls-mode", "self-signed"),
    (shim(tls_challenge="smtp"), "shim.tls-challenge", "dns"),
    (shim(tls_wildcard=True, tls_challenge="http"), "shim.tls-wildcard", "dns"),
    (shim(upstreem_port=1), "shim.upstreem-port", "did you mean upstream-port?"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "path", "words"), REFUSED, ids=[row[1] for row in REFUSED])
def test_what_a_guest_refuses_is_told_by_its_place(edit: Edit, path: str, words: str) -> None:
    told = [text for at, text, sure in found(edit) if at == path and sure]
    assert any(words in text for text in told), found(edit)


def test_a_config_that_is_right_is_told_nothing() -> None:
    assert found() == []
    assert found(version="0.12.3") == []


def test_two_networks_that_reach_out_are_one_too_many() -> None:
    def both(config: dict[str, Any]) -> None:
        config["networks"]["web"] = {"egress": "open"}
        config["containers"][0]["networks"] = ["out", "web"]

    assert [path for path, _, _ in found(both)] == [f"{APP}.networks"]


@pytest.mark.parametrize(
    ("edit", "path"),
    [
        (app(registry={"username": "u"}), f"{APP}.registry"),
        (app(ports=["8080"]), f"{APP}.ports"),
        (top(keyserver_url="https://keys.test"), "keyserver-url"),
        (top(volumes=[]), "volumes"),
    ],
)
def test_what_newer_images_know_is_not_held_against_them(edit: Edit, path: str) -> None:
    assert found(edit, version="0.12.0") == []


def test_a_name_that_nobody_here_knows_is_no_refusal_of_a_newer_image() -> None:
    [(path, _, sure)] = found(app(brandnew=True), version="0.13.0")
    assert (path, sure) == (f"{APP}.brandnew", False)


@pytest.mark.parametrize("port", ["443", "443:8080", "2222/tcp"])
def test_a_port_that_the_guest_keeps_for_itself_is_refused(port: str) -> None:
    [(path, _, sure)] = found(app(ports=[port]), version="0.12.0")
    assert (path, sure) == (f"{APP}.ports[0]", True)


@pytest.mark.parametrize(
    ("edit", "path", "words"),
    [
        (app(env=[{"API_TOKEN": "abc"}]), f"{APP}.env[0]", "public"),
        (app(env=["API_KEY"], secrets=["API_KEY"]), f"{APP}.secrets[0]", "is in env, too"),
        (app(memory="2g"), f"{APP}.memory", "1024 MiB"),
        (app(healthcheck={"test": ["curl", "x"]}), f"{APP}.healthcheck.test", "CMD"),
        (top(gpus=1), "gpus", "no container asks"),
        (top(containers=[]), "containers", "there is none"),
    ],
)  # fmt: skip
def test_what_is_odd_is_told_and_not_refused(edit: Edit, path: str, words: str) -> None:
    told = [(text, sure) for at, text, sure in found(edit) if at == path]
    assert [(words in text, sure) for text, sure in told] == [(True, False)]


def test_a_key_of_a_model_is_no_containers_secret() -> None:
    pack = f"{'1' * 64}_4096_{'2' * 8}-2222-2222-2222-222222222222"

    def shared(config: dict[str, Any]) -> None:
        config["models"] = [{"mpk": pack, "key-secret": "API_KEY"}]

    assert [(path, sure) for path, _, sure in found(shared)] == [(f"{APP}.secrets[0]", False)]
    newer = found(shared, version="0.12.0")
    assert [(path, sure) for path, _, sure in newer] == [(f"{APP}.secrets[0]", True)]


def test_images_of_another_publisher_have_rules_of_their_own() -> None:
    assert found(lambda config: config.update({"cvm-source": "own/image", "what": 1})) == []


def test_warnings_are_bounded_and_name_the_file() -> None:
    config = copy.deepcopy(VALID)
    config["containers"] = [
        {"name": f"c{n}", "image": "registry.test/app:latest"} for n in range(20)
    ]
    told = refusals(json.dumps(config).encode())
    assert len(told) == 9
    assert told[0].startswith("the guest will refuse its tinfoil-config.yml: containers[0].image")
    assert "12 more" in told[-1]


def test_what_the_project_makes_itself_is_not_refused() -> None:
    for config in (CONFIG, config_of({"GUEST_CONSOLE": "1"}, secrets=("KEY",))):
        assert refusals(config) == ()


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the real configs are not here")
def test_real_configs_are_refused_only_for_what_they_are(tmp_path: Path) -> None:
    """All of them name older images; as ones of 0.11, only what that one really refuses."""
    places: dict[str, set[str]] = {}
    for path in sorted(CONFIGS.iterdir()):
        lines = path.read_text().splitlines()
        text = "\n".join(
            "cvm-version: 0.11.0" if line.startswith("cvm-version") else line for line in lines
        )
        named = "0" * 64 in text
        places[path.stem] = {
            one.path
            for one in check_config(text.encode())
            if one.sure and not (named and one.path.endswith(".image"))
        }
    assert {stem: found for stem, found in places.items() if found} == {
        "confidential-gemma4-31b": {"containers[0].ipc"},
        "confidential-websearch": {"shim-version"},
        "tinfoil-containers-hello-world": {"shim-version"},
        "vita-agent-tinfoil-config": {"containers[0].registry"},
    }
