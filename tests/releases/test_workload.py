"""The workload config: the needs of a host are read, wrong ones are refused with their path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.model.shim import ShimRules
from agent.probes.choice import choose_path
from agent.releases.fields import ReleaseFieldError
from agent.releases.workload import Workload, parse_workload

CONFIGS = Path(__file__).resolve().parents[3] / "shared" / "configs"
PACK = "ab" * 32 + "_62578688000_27fb23ac-db9b-5e25-991a-90fdf2c9b3a7"

REAL = {
    "confidential-gemma4-31b.yml": (16, 65536, 1, 1, 1800.0, "/health"),
    "confidential-glm5-2.yml": (32, 524288, 8, 1, 7200.0, "/health"),
    "confidential-model-router.yml": (8, 16384, 0, 0, 300.0, "/health"),
    "confidential-pii-gpu.yml": (8, 32768, 1, 1, 300.0, "/health"),
    "confidential-sync.yml": (8, 32768, 0, 0, 300.0, "/health"),
    "confidential-websearch.yml": (8, 16384, 0, 0, 0.0, "/health"),
    "tinfoil-containers-hello-world.yml": (2, 8192, 0, 0, 0.0, "/health"),
    "vita-agent-tinfoil-config.yml": (4, 16384, 0, 0, 0.0, "/api/health"),
}


def parse(**members: Any) -> Workload:
    """A small config with these members, underscores for hyphens; `...` removes one."""
    config: dict[str, Any] = {"cvm-version": "0.11.0", "cpus": 1, "memory": 256}
    for name, value in members.items():
        config[name.replace("_", "-")] = value
    kept = {name: value for name, value in config.items() if value is not ...}
    return parse_workload(yaml.safe_dump(kept).encode())


def container(**members: Any) -> dict[str, Any]:
    return {"name": "web", **members}


def refused_at(path: str, **members: Any) -> ReleaseFieldError:
    with pytest.raises(ReleaseFieldError) as refused:
        parse(**members)
    assert refused.value.path == path, str(refused.value)
    return refused.value


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the real configs are not on this machine")
@pytest.mark.parametrize("name", REAL)
def test_real_configs_parse(name: str) -> None:
    found = parse_workload((CONFIGS / name).read_bytes())
    assert (
        found.cpus, found.memory_mib, found.gpus, len(found.models), found.start_period_s,
        choose_path(found.shim, None),
    ) == REAL[name]  # fmt: skip


@pytest.mark.skipif(not CONFIGS.is_dir(), reason="the real configs are not on this machine")
def test_every_real_config_is_looked_at() -> None:
    assert {path.name for path in CONFIGS.iterdir()} == set(REAL)


def test_names_that_must_be_supplied_are_collected_once_and_in_order() -> None:
    found = parse(
        containers=[
            container(env=["B", {"A": "1"}, "C"], secrets=["T", "S"]),
            container(name="x", env=["C", "D"], secrets=["S"],
                      registry={"username": "u", "password_secret": "P"}),
        ],
        models=[{"mpk": PACK, "key-secret": "K"}],
    )  # fmt: skip
    assert found.env_names == ("B", "C", "D")
    assert found.secret_names == ("T", "S", "P", "K")
    assert found.container_names == ("web", "x")


def test_the_longest_start_period_counts() -> None:
    periods = ["30s", "5m", "1m30s", None]
    found = parse(
        containers=[
            container(name=f"c{i}", healthcheck={"start_period": period})
            for i, period in enumerate(periods)
        ]
        + [container(name="none"), container(name="null", healthcheck=None)]
    )
    assert found.start_period_s == 300.0


@pytest.mark.parametrize(
    ("check", "wait_s"),
    [
        ({"start_period": "5m", "interval": "10s", "retries": 6}, 360),
        ({"start_period": "5m"}, 390),  # Docker's own 3 times 30 s
        ({"interval": "5s"}, 15),
        ({"interval": "0s", "retries": 0}, 90),
        ({}, 90),
        (None, 0),
    ],
)
def test_a_boot_waits_until_a_container_is_found_healthy_or_not(
    check: dict[str, object] | None, wait_s: float
) -> None:
    found = parse(
        containers=[container(healthcheck=check), container(name="quick")],
    )
    assert found.boot_wait_s == wait_s


def test_the_longest_wait_counts_and_not_that_of_the_longest_start_period() -> None:
    checks = [{"start_period": "1m", "interval": "60s", "retries": 10}, {"start_period": "5m"}]
    found = parse(
        containers=[container(name=f"c{i}", healthcheck=check) for i, check in enumerate(checks)]
    )
    assert (found.start_period_s, found.boot_wait_s) == (300, 660)


@pytest.mark.parametrize(
    ("shim", "mode"),
    [
        ({"tls-mode": "self-signed"}, "self-signed"),
        ({"tls-mode": "acme"}, "acme"),
        ({"upstream-port": 80}, "cert-proxy"),  # the guest's own default
        (None, "cert-proxy"),
    ],
)
def test_where_the_certificate_comes_from_is_known(
    shim: dict[str, object] | None, mode: str
) -> None:
    assert parse(shim=shim).tls_mode == mode


def test_wrong_numbers_of_a_health_check_are_refused() -> None:
    for name, value in (("retries", -1), ("retries", "3"), ("interval", "soon")):
        refused_at(
            f"containers[0].healthcheck.{name}",
            containers=[container(healthcheck={name: value})],
        )
    refused_at("shim.tls-mode", shim={"tls-mode": 7})


def test_a_config_with_the_least_is_enough() -> None:
    found = parse()
    assert (found.gpus, found.models, found.volumes, found.inbound_ports) == (0, (), (), ())
    assert (found.container_names, found.start_period_s, found.shim) == ((), 0.0, ShimRules())


def test_what_the_host_does_not_need_is_not_looked_at() -> None:
    found = parse(
        networks=7, unknown=[1], keyserver_url={}, shim={"upstream-port": "x", "authenticated": 3},
        containers=[container(image=5, command=7, gpus=[1.5], runtime=[], models=9, volumes=0,
                              env=[{"a b/c": "x"}, {"N": 1}, {"T": True}, {"Z": None}])],
    )  # fmt: skip
    assert found.container_names == ("web",)


@pytest.mark.parametrize(
    "version", ["0.11.0", "v1.2.3", "0.12.0-rc1", "0.11.0@sha256:" + "a" * 64]
)
def test_versions_are_read_without_their_pin(version: str) -> None:
    assert parse(cvm_version=version).cvm_version == version.partition("@")[0]


@pytest.mark.parametrize(
    "value",
    [..., None, 0.11, 11, "", "latest", "0.11", "0.11.0.1", "0.11.0\n", "0.11.0/../x", "٠.١.٢",
     "0.11.0@sha256:ab", "999999.0.0", [], {}],
)  # fmt: skip
def test_a_wrong_cvm_version_is_refused(value: object) -> None:
    refused_at("cvm-version", cvm_version=value)


@pytest.mark.parametrize("value", [..., None, 0, -1, 1025, 1.0, "2", True, [], {}, 2**62])
def test_wrong_cpus_are_refused(value: object) -> None:
    refused_at("cpus", cpus=value)


@pytest.mark.parametrize("value", [..., None, 0, -1, (64 << 20) + 1, 1.5, "2g", False, [], {}])
def test_wrong_memory_is_refused(value: object) -> None:
    refused_at("memory", memory=value)


@pytest.mark.parametrize("value", [-1, 9, "all", 1.0, True, [0], {}])
def test_wrong_gpus_are_refused(value: object) -> None:
    refused_at("gpus", gpus=value)


@pytest.mark.parametrize("name", ["containers", "models", "volumes"])
def test_lists_are_lists(name: str) -> None:
    for value in ("x", 1, {"a": 1}, True):
        refused_at(name, **{name: value})
    for value in ("x", 1, [], True, None):
        refused_at(f"{name}[0]", **{name: [value]})


@pytest.mark.parametrize(
    "name",
    [..., None, "", "a/b", "..", "../x", "a,b", "a\nb", "a b", "-a", "ä", "x" * 129, 7, True, [],
     {}],
)  # fmt: skip
def test_wrong_container_names_are_refused(name: object) -> None:
    member = {} if name is ... else {"name": name}
    refused_at("containers[1].name", containers=[container(), member])


def test_two_containers_of_one_name_are_refused() -> None:
    refused_at("containers[1].name", containers=[container(), container()])


@pytest.mark.parametrize(
    "name",
    [..., None, "", "a/b", "..", "a,b", "a\nb", "A", "1a", "a_b", "x" * 64, 7, True, [], {}],
)
def test_wrong_volume_names_are_refused(name: object) -> None:
    member = {} if name is ... else {"name": name}
    refused_at("volumes[1].name", volumes=[{"name": "data"}, member])


def test_two_volumes_of_one_name_are_refused() -> None:
    refused_at("volumes[1].name", volumes=[{"name": "data"}, {"name": "data"}])


@pytest.mark.parametrize(
    "pack",
    ["", "x", PACK.upper(), PACK[1:], PACK + "x", PACK.replace("_", "-"), "../" + PACK,
     PACK.replace("_625", "_0625"), PACK + "\n", PACK + ",readonly=off", 7, True, [], {}],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["mpk", "mwp", "emwp"])
def test_wrong_packs_are_refused(kind: str, pack: object) -> None:
    refused_at(f"models[0].{kind}", models=[{"name": "m", kind: pack}])


def test_a_model_without_a_pack_is_refused() -> None:
    refused_at("models[0]", models=[{"name": "m", "repo": "a/b@c"}])


def test_more_data_disks_than_there_are_places_for_are_refused() -> None:
    models = [{"mpk": PACK} for _ in range(20)]
    assert len(parse(models=models, volumes=[{"name": f"v{i}"} for i in range(4)]).models) == 20
    refused_at("", models=models, volumes=[{"name": f"v{i}"} for i in range(5)])
    refused_at("models", models=[{"mpk": PACK} for _ in range(25)])


WRONG_NAMES = ("", "1A", "A B", "A/B", "..", "A,B", "A\nB", "A=B", "Ä", "A" * 129)


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_wrong_names_of_variables_and_secrets_are_refused(name: str) -> None:
    refused_at("containers[0].env[1]", containers=[container(env=["A", name])])
    refused_at("containers[0].secrets[1]", containers=[container(secrets=["A", name])])
    registry = {"username": "u", "password_secret": name}
    refused_at("containers[0].registry.password_secret", containers=[container(registry=registry)])
    refused_at("models[0].key-secret", models=[{"mpk": PACK, "key-secret": name}])


@pytest.mark.parametrize("entry", [7, 1.5, True, None, [], {}, {"A": 1, "B": 2}, {"A": []},
                                   {"A": {}}, {1: "x"}, {None: "x"}])  # fmt: skip
def test_wrong_env_entries_are_refused(entry: object) -> None:
    refused_at("containers[0].env[0]", containers=[container(env=[entry])])


@pytest.mark.parametrize("value", ["A", 7, True, {"A": 1}])
def test_env_and_secrets_are_lists(value: object) -> None:
    refused_at("containers[0].env", containers=[container(env=value)])
    refused_at("containers[0].secrets", containers=[container(secrets=value)])


@pytest.mark.parametrize("value", [7, 1.5, True, [], {}, ["A"]])
def test_a_secret_is_a_name(value: object) -> None:
    refused_at("containers[0].secrets[0]", containers=[container(secrets=[value])])


@pytest.mark.parametrize("value", [0, -1, 65536, 443, "80", 80.0, True, None, [], {}])
def test_wrong_inbound_ports_are_refused(value: object) -> None:
    refused_at("cvm-network.inbound-ports[1]", cvm_network={"inbound-ports": [8080, value]})


def test_inbound_ports_are_a_list_without_repetition_and_not_too_long() -> None:
    path = "cvm-network.inbound-ports"
    assert parse(cvm_network={"inbound-ports": [8080, 22]}).inbound_ports == (8080, 22)
    assert parse(cvm_network={"inbound-ports": None}).inbound_ports == ()
    refused_at(path, cvm_network={"inbound-ports": 8080})
    refused_at(path, cvm_network={"inbound-ports": list(range(1000, 1065))})
    refused_at(f"{path}[1]", cvm_network={"inbound-ports": [80, 80]})
    refused_at("cvm-network", cvm_network=[8080])


@pytest.mark.parametrize("value", ["", "-5s", "5 m", "m", "1d", "1h-30m", True, [], {}, -1,
                                   "169h", 2**62, float("nan"), float("inf")])  # fmt: skip
def test_wrong_start_periods_are_refused(value: object) -> None:
    refused_at(
        "containers[0].healthcheck.start_period",
        containers=[container(healthcheck={"start_period": value})],
    )


def test_maps_on_the_way_are_maps() -> None:
    refused_at("containers[0].healthcheck", containers=[container(healthcheck="30s")])
    refused_at("containers[0].registry", containers=[container(registry=["x"])])
    refused_at("shim", shim=[])
    refused_at("shim.paths", shim={"paths": "/health"})
    refused_at("shim.paths[0]", shim={"paths": [7]})


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"7",
        b"[]",
        b"just text",
        b"cpus: 1\ncpus: 2",
        b"a: &x [1]\nb: *x",
        b"a: 1\n---\nb: 2",
        b"{" * 2000,
        b"[" * 2000 + b"]" * 2000,
        b"cvm-version: !!python/object:os.system x",
        b"\xff\xfe",
        b"\x00",
        b"a: \t- b",
        b"<<: {a: 1}",
        b"#" * ((1 << 20) + 1),
        b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b]",
        b"memory: " + b"9" * 5000,
    ],
)
def test_bad_yaml_and_config_bombs_are_refused_as_a_whole(text: bytes) -> None:
    with pytest.raises(ReleaseFieldError) as refused:
        parse_workload(text)
    assert refused.value.path == ""
    assert str(refused.value).startswith("tinfoil-config.yml: ")
    assert len(str(refused.value)) < 300


def test_values_are_never_quoted() -> None:
    secret = "hunter2-hunter2"
    for members in ({"cpus": secret}, {"containers": [container(secrets=[secret])]}):
        with pytest.raises(ReleaseFieldError) as refused:
            parse(**members)
        assert secret not in str(refused.value)
