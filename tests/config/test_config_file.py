"""The configuration: read whole and checked, or every problem of it told."""

from __future__ import annotations

import contextlib
import types
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config import Accel, Config, SnpFloors, SnpMinimum, Tee
from agent.config_fields import CHECKS
from agent.config_file import ConfigError, load_config

TLS = {"certificate": "a.pem", "key": "a.key", "ca": "ca.pem", "trust_domain": "fleet.example"}
PLATFORM = {"mrtd": "ab" * 48, "rtmr0": "ab" * 48}
SHAPE = {"cpus": 4, "memory_mb": 16384, "gpus": 0, "disks": 3}
LONG = "/" + "x" * 120

# Field -> values that are wrong, each with a word of the reason.
WRONG: dict[str, list[tuple[Any, str]]] = {
    "host_id": [("", "1 to 64"), ("a b", "1 to 64"), ("-x", "1 to 64"), (7, "expected str")],
    "state_dir": [("", "a path"), (5, "a path"), ("a\0b", "unprintable"), ("~/x", "expanded")],
    "run_dir": [(LONG, "at most 75 bytes"), (["/run"], "a path")],
    "tee": [("sgx", "one of auto, sev-snp, tdx, simulated, none"), (None, "one of")],
    "allow_unattested": [("yes please", "expected bool"), (1, "expected bool")],
    "accel": [("hvf", "one of auto, kvm, tcg"), (["kvm"], "one of")],
    "supervisor": [("docker", "one of auto, systemd, detached")],
    "network.mode": [("bridge", "one of auto, tap, user")],
    "network.bridge": [("x" * 16, "at most 15"), ("a/b", "at most 15"), ("", "at most 15")],
    "network.subnet": [
        ("10.0.0.1/24", "host bits"),
        ("8.8.8.0/24", "private"),
        ("10.0.0.0/31", "/16 to a /30"),
        ("10.0.0.0/8", "/16 to a /30"),
        ("127.0.0.0/24", "private"),
        ("169.254.0.0/16", "private"),
        ("fd00::/64", "IPv4 subnet"),
        ("lan", "IPv4 subnet"),
    ],
    "network.loopback_subnet": [
        ("10.0.0.0/24", "127.0.0.0/8"),
        ("127.0.0.0/24", "not hold 127.0.0.1"),
        ("127.5.0.0/31", "/16 to a /30"),
        ("x", "IPv4 subnet"),
    ],
    "network.host_ports": [([0], "1 to 65535"), ([80, 80], "twice"), (80, "expected array")],
    "network.guest_egress": [("some", "one of auto, internet, any, none"), (True, "one of auto")],
    "network.guest_egress_allow": [
        (
            ["10.0.0.1/8"],
            "number 1: must be CIDR or CIDR:PORT with an IPv4 network: 10.0.0.1/8 has",
        ),
        (["10.0.0.0/8", "10.0.0.0/8:0"], "number 2: the port of 10.0.0.0/8:0 must be 1 to 65535"),
        (["10.0.0.0/8:"], "must be 1 to 65535"),
        (["fd00::/8"], "IPv4 network"),
        (["api.example.com:443"], "IPv4 network"),
        (["169.254.169.254:80"], "metadata address, which is closed to guests always"),
        (["127.0.0.1"], "lies in 127.0.0.0/8"),
        (["10.0.0.0/8", "10.0.0.0/8"], "twice"),
        ("10.0.0.0/8", "expected array"),
    ],
    "network.hairpin": [("maybe", "expected bool")],
    "traffic.mode": [("iptables", "one of auto, nftables, haproxy, userspace")],
    "limits.guest_flows": [(0, "1 to"), ("many", "auto or a number"), (-5, "1 to")],
    "limits.guest_flows_per_s": [(0, "1 to 1000000"), ("auto", "int")],
    "limits.deployment_connections": [(0, "1 to"), (1.5, "int"), (1 << 40, "1 to")],
    "limits.deployment_connections_per_s": [(0, "1 to 1000000")],
    "limits.source_connections": [("", "auto or a number"), (0, "1 to")],
    "limits.idle_s": [(59, "60 to 604800"), ("1h", "int")],
    "qemu.binary": [("", "name or the path"), ("qemu\n", "name or the path")],
    "qemu.firmware_dir": [("", "a path")],
    "qemu.user": [("Root User", "name of a user"), ("", "name of a user")],
    "qemu.tdx_firmware": [("", "a path")],
    "qemu.quote_service": [
        ("vsock:2", "vsock:CID:PORT"),
        ("vsock:2:0", "vsock:CID:PORT"),
        ("qgs.socket", "absolute path"),
    ],
    "releases.source": [
        ("http://example.com", "http is not protected"),
        ("ftp://example.com", "https URL"),
        ("https://", "https URL"),
        ("https://user:pw@example.com", "without credentials"),
        ("https://example.com/?a=b", "without credentials"),
        ("https://example.com:99999", "https URL"),
        ("file://host/x", "file:///"),
        ("", "a path"),
    ],
    "releases.image_sources": [
        (["http://r.example"], "http is not protected"),
        (["https://u:p@r.example"], "without credentials"),
        ("https://r.example", "expected"),
    ],
    "releases.default_domain": [
        ("", "must be a host name in lower case"),
        ("Enclaves.Example", "must be a host name in lower case"),
        (".example", "must be a host name in lower case"),
        ("a.b.c.d.e.f.g.h", "7 labels"),
        (f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{'d' * 20}", "at most 189 characters"),
        (7, "expected str"),
    ],
    "releases.cache_dir": [(7, "a path")],
    "releases.cache_max_gib": [(0, "must be 0.001 to"), (float("nan"), "must be")],
    "releases.cache_max_age_days": [(0, "must be 0.01 to"), (1e6, "must be")],
    "releases.github_token_file": [("", "a path")],
    "releases.models_dir": [("", "a path")],
    "releases.require_signature": [("no way", "expected bool")],
    "releases.signature.trusted_root": [("", "a path")],
    "releases.signature.issuer": [("http://a.example", "https URL"), (None, "expected str")],
    "releases.signature.repository": [("", "without spaces"), ("a/{tag}", "{repo}")],
    "releases.signature.identity": [
        ("a b", "without spaces"),
        ("{repo}", "{repository} or {tag}"),
    ],
    "releases.signature.predicate_type": [("x", "https URL"), (1, "expected str")],
    "host.sysfs_root": [(None, "a path")],
    "host.cgroup_root": [("", "a path")],
    "host.nvml_library": [("", "name or the path")],
    "host.gpu_tools": [("", "name or the path")],
    "host.gpu_group_sizes": [
        ("all", "auto or"),
        ([], "auto or"),
        ([1, 1], "auto or"),
        ([0], "auto"),
    ],
    "host.vcpus": [(0, "1 to 65536"), ("two", "expected int")],
    "gpus.include": [([""], "number 1: must be a UUID"), ([7], "expected str")],
    "gpus.exclude": [
        (["0000:18:00"], "whole PCI address"),
        ([" x"], "must be a UUID"),
        (["slot:5", "slot:5"], "twice"),
    ],
    "gpus.stop_units": [(["dcgm"], "NAME.service"), (["a b.service"], "NAME.service")],
    "inventory.interval_s": [(0, "0.1 to 3600"), ("often", "expected float")],
    "reserve.memory_mib": [(-1, "0 to"), (1.5, "expected int"), ("2G", "expected int")],
    "reserve.vcpus": [(-1, "0 to"), (10**19, "0 to 65536")],
    "update.dwell_s": [(-1, "0 to 3600"), (float("inf"), "0 to 3600")],
    "update.soak_s": [(-1, "0 to 86400"), (10**18, "0 to 86400")],
    "store.backup_interval_s": [(0, "0.1 to 3600")],
    "update.drain_s": [(86401, "0 to 86400")],
    "update.boot_deadline_s": [
        ("soon", "auto or a number"),
        (0, "1 to 86400"),
        (True, "expected"),
    ],
    "update.pull_allowance_s": [(-1, "0 to 86400"), ("long", "expected float")],
    "update.stop_grace_s": [(0, "0.1 to 3600")],
    "update.revert_after_switch": [(2, "expected bool")],
    "relaunch_unhealthy_after_s": [(9, "10 to 86400"), ("soon", "float | null")],
    "probes.interval_s": [(0, "0.1 to 3600")],
    "probes.timeout_s": [(0, "0.1 to 3600")],
    "probes.success_threshold": [(0, "1 to 100"), (1.5, "expected int")],
    "probes.failure_threshold": [(101, "1 to 100")],
    "probes.outside": [("off", "one of auto, never"), (False, "expected str")],
    "attestation.interval_s": [(0, "1 to 86400")],
    "attestation.allow_unfresh": [("x", "expected bool")],
    "attestation.on_loss": [("ignore", "one of degrade, drop_traffic")],
    "attestation.require_chip_id": [("x", "expected bool")],
    "attestation.snp.signer": [("VCEK", "one of any, vcek, vlek")],
    "attestation.snp.allow_smt": [(1, "expected bool")],
    "attestation.snp.allow_cxl": [("x", "expected bool")],
    "attestation.snp.require_single_socket": [(0, "expected bool")],
    "attestation.snp.require_ciphertext_hiding": [("x", "expected bool")],
    "attestation.snp.require_alias_check": [("x", "expected bool")],
    "attestation.snp.require_crl": [("x", "expected bool")],
    "attestation.snp.require_committed": [("x", "expected bool")],
    **{
        f"attestation.snp.minimum.{part}": [(-1, "0 to 255"), (256, "0 to 255")]
        for part in ("bootloader", "tee", "snp", "microcode", "fmc")
    },
    **{
        f"attestation.snp.minimum.{which}_mitigations": [(-1, "0 to"), ("x", "expected int")]
        for which in ("launch", "current")
    },
    "attestation.snp.max_vmpl": [(4, "0 to 3"), (-1, "0 to 3")],
    "attestation.snp.minimum_abi": [("1", "MAJOR.MINOR"), (1.55, "expected str"), ("01.5", "MA")],
    "attestation.snp.minimum_guest_svn": [(-1, "0 to 4294967295"), (1 << 32, "0 to")],
    **{
        f"attestation.snp.{tcb}_tcb.{part}": [(-1, "0 to 255"), (256, "0 to 255")]
        for tcb in ("current", "reported", "committed", "launch")
        for part in ("bootloader", "tee", "snp", "microcode", "fmc")
    },
    "attestation.snp.id_key_digest": [("ab" * 47, "96 digits"), ("AB" * 48, "lower case")],
    "attestation.snp.author_key_digest": [("", "96 digits"), (5, "expected str")],
    "attestation.tdx.update": [("late", "one of standard, early")],
    "attestation.tdx.platforms": [
        ([{"mrtd": "ab" * 48, "rtmr0": "ab" * 47}], "number 1: rtmr0 must be 96 digits"),
        ([{"mrtd": "AB" * 48, "rtmr0": "ab" * 48}], "number 1: mrtd must be 96 digits"),
        ([{"mrtd": "ab" * 48}], "missing required field rtmr0"),
        ([{"mrtd": "ab" * 48, "rtmr0": "ab" * 48, "rtmr1": "ab" * 48}], "unknown field rtmr1"),
        ([{"mrtd": "ab" * 48, "rtmr0": "ab" * 48} for _ in range(2)], "twice"),
        ([{"mrtd": "ab" * 48, "rtmr0": "ab" * 48, "name": "a\nb"}], "number 1: name"),
        ([PLATFORM | {"shape": {"cpus": 4}}], "missing required field memory_mb"),
        ([PLATFORM | {"shape": SHAPE | {"disks": 2}}], "number 1: shape.disks must be at least 3"),
        ([PLATFORM | {"shape": SHAPE | {"cpus": 0}}], "number 1: shape.cpus must be at least 1"),
        ([PLATFORM | {"shape": SHAPE | {"memory_mb": 0}}], "shape.memory_mb must be at least 1"),
        ([PLATFORM | {"shape": SHAPE | {"gpus": -1}}], "shape.gpus must be at least 0"),
        ([PLATFORM | {"shape": SHAPE | {"volumes": 1}}], "unknown field volumes"),
        ({"mrtd": "ab" * 48}, "expected array"),
    ],
    "attestation.tdx.mrseams": [
        (["ab" * 48, "cd"], "number 2: must be 96 digits"),
        ("ab" * 48, "expected array"),
    ],
    "attestation.tdx.tcb_statuses": [
        (["UpToDate", "Revoked"], "number 2: Revoked cannot be allowed"),
        (["Uptodate"], "invalid enum value"),
        (["OutOfDate", "OutOfDate"], "twice"),
    ],
    "attestation.tdx.refused_advisories": [(["INTEL SA"], "number 1: must be an advisory")],
    "attestation.tdx.minimum_tcb_evaluation_data_number": [(-1, "0 to"), ("17", "expected int")],
    "attestation.tdx.minimum_tee_tcb_svn": [
        ("0301", "32 digits"),
        ("03010200" * 5, "32 digits"),
        (3010200, "expected str"),
    ],
    "attestation.tdx.fmspcs": [(["b0c06f"], "number 1: must be 12 digits"), ("any", "expected")],
    "attestation.tdx.allow_dynamic_platform": [("x", "expected bool")],
    "attestation.tdx.allow_cached_keys": [(1, "expected bool")],
    "attestation.tdx.allow_smt": [("x", "expected bool")],
    "attestation.tdx.td_attributes": [("00" * 7, "16 digits"), (10, "expected str")],
    "attestation.tdx.xfam": [("E702060000000000", "lower case")],
    "attestation.gpu.require_rim": [("x", "expected bool")],
    "attestation.gpu.allow_expired_rim": [(1, "expected bool")],
    "attestation.gpu.minimum_driver": [("r580", "a driver's version"), (580.95, "expected str")],
    "attestation.gpu.minimum_vbios.hopper": [("9600740001", "five numbers"), (1, "expected str")],
    "attestation.gpu.minimum_vbios.blackwell": [("97.00.82.00", "five numbers")],
    "attestation.gpu.minimum_vbios.nvswitch": [("96.10.5e.00.01", "two hex digits")],
    "attestation.collateral.amd_url": [("http://a.example", "https URL"), ("", "https URL")],
    "attestation.collateral.intel_url": [("https://u:p@a.example", "without credentials")],
    "attestation.collateral.intel_root_crl_url": [("https://a.example/?x", "without"), (1, "str")],
    "attestation.collateral.nvidia_rim_url": [("http://a.example/v1/rim", "https URL")],
    "attestation.collateral.directory": [("", "a path"), (True, "a path")],
    "attestation.collateral.offline": [("x", "expected bool")],
    "attestation.collateral.listen": [("8480", "ADDRESS:PORT"), ("10.0.0.1:0", "1 to 65535")],
    "qemu.cage": [("warn", "one of enforce, report, off"), (True, "one of enforce")],
    "secrets.at_rest": [("plain", "one of off, systemd_creds"), (True, "expected str")],
    "listen.socket": [(LONG, "at most 107 bytes"), ("", "a path")],
    "listen.status": [
        ("0.0.0.0:8470", "loopback"),
        ("127.0.0.1", "ADDRESS:PORT"),
        ("127.0.0.1:0", "1 to 65535"),
        ("localhost:80", "not an IP address"),
    ],
    "listen.status_names": [(["A"], "number 1: must be a host name"), (["a", "a"], "twice")],
    "listen.rpc": [("::1:80", "brackets"), ("1.2.3.4:65536", "1 to 65535")],
    "listen.floating": [
        (["192.0.2.1/24"], "number 1: must be a subnet"),
        (["192.0.2.0/24", "0.0.0.0/0"], "number 2: must be a /16 or narrower"),
        (["2001:db8::/32"], "a /48"),
        (["127.9.0.0/16"], "not loopback"),
        (["224.0.0.0/24"], "multicast"),
        (["240.0.0.0/16"], "reserved"),
        (["192.0.2.0/24", "192.0.2.0/24"], "twice"),
        ("192.0.2.0/24", "expected array"),
    ],
    "listen.tls.certificate": [("", "a path")],
    "listen.tls.key": [(1, "a path")],
    "listen.tls.ca": [(None, "a path")],
    "listen.tls.crl": [([], "a path")],
    "listen.tls.trust_domain": [("A B", "trust domain"), ("", "trust domain")],
    "coordinator.url": [("http://c.example", "https URL"), ("c.example", "https URL")],
    "coordinator.interval_s": [(0, "0.1 to 3600")],
    "coordinator.enrol_token_file": [("", "a path")],
    "log.level": [("loud", "one of debug, info, warning, error")],
    "log.format": [("xml", "one of auto, text, json")],
}


def leaves(kind: type[Any] = Config, at: str = "") -> dict[str, Any]:
    """Every field of the configuration with its type, by its path."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        members = (
            get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        )
        nested = [m for m in members if isinstance(m, type) and issubclass(m, msgspec.Struct)]
        path = at + field.name
        found |= leaves(nested[0], path + ".") if nested else {path: field.type}
    return found


def tree_of(path: str, value: object) -> dict[str, Any]:
    """A configuration with that one setting; a TLS section is otherwise complete."""
    parts = path.split(".")
    tree: Any = value
    for depth in range(len(parts), 0, -1):
        tree = {parts[depth - 1]: tree}
        if parts[: depth - 1] == ["listen", "tls"]:
            tree = TLS | tree
    return tree


def write(tmp_path: Path, tree: object) -> Path:
    path = tmp_path / "agent.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def problems_of(path: Path | None, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_every_field_has_a_wrong_value_here():
    assert sorted(leaves()) == sorted(WRONG)


def test_every_text_and_number_is_checked_beyond_its_type():
    free = {path for path, kind in leaves().items() if not closed(kind)}
    assert free == set(CHECKS)


def closed(kind: Any) -> bool:
    """A switch, an enumeration or a path, perhaps null."""
    members = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return all(m in (bool, Path, type(None)) or issubclass(m, StrEnum) for m in members)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [(field, value, reason) for field, cases in WRONG.items() for value, reason in cases],
    ids=lambda value: repr(value)[:24],
)
def test_a_wrong_value_is_told_by_its_path(tmp_path: Path, field: str, value: object, reason: str):
    (problem,) = problems_of(write(tmp_path, tree_of(field, value)))
    assert problem.startswith(f"{field}: ")
    assert reason in problem
    assert len(problem) < 300


def test_all_wrong_values_are_told_at_once(tmp_path: Path):
    tree: dict[str, Any] = {}
    for field, cases in WRONG.items():
        *sections, name = field.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = cases[-1][0]
    del tree["run_dir"]
    problems = problems_of(write(tmp_path, tree))
    told = {problem.partition(":")[0] for problem in problems}
    assert told == set(WRONG) - {"run_dir"}


@pytest.mark.parametrize(
    ("text", "minimum"),
    [
        ("{}", SnpFloors.ENDORSED),
        ("minimum: endorsed", SnpFloors.ENDORSED),
        ("minimum: none", SnpFloors.NONE),
        ("minimum: {snp: 20}", SnpMinimum(snp=20)),
        ("minimum: {current_mitigations: 0x3f}", SnpMinimum(current_mitigations=63)),
        ("minimum: {}", SnpMinimum()),
    ],
)
def test_floors_are_a_word_or_numbers(tmp_path: Path, text: str, minimum: object):
    inner = "".join(f"      {line}\n" for line in text.splitlines())
    (tmp_path / "agent.yaml").write_text(f"attestation:\n  snp:\n{inner}")
    assert load_config(tmp_path / "agent.yaml", {}).attestation.snp.minimum == minimum
    name = "ENCLAVE_AGENT_ATTESTATION__SNP__MINIMUM"
    word = load_config(tmp_path / "agent.yaml", {name: "none"}).attestation.snp.minimum
    assert word is SnpFloors.NONE


@pytest.mark.parametrize("value", ["some", 5, ["endorsed"], {"more": 1}, {"snp": "endorsed"}])
def test_floors_are_nothing_else(tmp_path: Path, value: object):
    (problem,) = problems_of(write(tmp_path, tree_of("attestation.snp.minimum", value)))
    assert problem.startswith("attestation.snp.minimum")


def test_an_svn_of_the_guest_s_needs_the_key_that_vouches_for_it(tmp_path: Path):
    snp = {"minimum_guest_svn": 1}
    (problem,) = problems_of(write(tmp_path, {"attestation": {"snp": snp}}))
    assert problem.startswith("attestation.snp.minimum_guest_svn: needs attestation.snp.id_key_")
    both = {"attestation": {"snp": snp | {"id_key_digest": "ab" * 48}}}
    assert load_config(write(tmp_path, both), {}).attestation.snp.minimum_guest_svn == 1


def test_nothing_at_all_is_the_defaults_with_what_follows_from_them():
    config = load_config(None, {})
    assert config.releases.cache_dir == Path("/var/lib/enclave-agent/cache")
    assert config.listen.socket == Path("/run/enclave-agent/agent.sock")
    assert (config.tee, config.accel) == (Tee.AUTO, Accel.AUTO)


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n", "update:\nlisten:\n  # none\n"])
def test_an_empty_file_and_empty_sections_are_the_defaults(tmp_path: Path, text: str):
    (tmp_path / "agent.yaml").write_text(text)
    assert load_config(tmp_path / "agent.yaml", {}) == load_config(None, {})


def test_a_whole_file_is_read(tmp_path: Path):
    tree = {
        "host_id": "host-1",
        "state_dir": "state",
        "run_dir": "/run/x",
        "tee": "none",
        "allow_unattested": True,
        "network": {"mode": "tap", "subnet": "192.168.7.0/24", "host_ports": [53]},
        "qemu": {"binary": "bin/qemu", "user": "nobody"},
        "releases": {"source": "../releases", "cache_max_gib": 1},
        "host": {"gpu_group_sizes": [1, 8]},
        "update": {"boot_deadline_s": 90},
        "secrets": {"at_rest": "systemd_creds"},
        "listen": {"status": None, "tls": TLS},
        "coordinator": {"url": "https://c.example:8443/base"},
    }
    (tmp_path / "etc").mkdir()
    config = load_config(write(tmp_path / "etc", tree), {})
    etc = tmp_path / "etc"
    assert config.state_dir == etc / "state"
    assert config.releases.cache_dir == etc / "state" / "cache"
    assert config.releases.source == str(tmp_path / "releases")
    assert config.qemu.binary == str(etc / "bin" / "qemu")
    assert config.qemu.user == "nobody"
    assert config.host.gpu_group_sizes == (1, 8)
    assert config.update.boot_deadline_s == 90
    assert config.network.host_ports == (53,)
    assert config.listen.status is None
    assert config.listen.socket == Path("/run/x/agent.sock")
    assert config.listen.tls is not None
    assert config.listen.tls.certificate == etc / "a.pem"


@pytest.mark.parametrize("text", ["off", "'off'", "report", "enforce"])
def test_the_cage_may_be_written_as_the_manual_has_it(tmp_path: Path, text: str):
    (tmp_path / "agent.yaml").write_text(f"qemu: {{cage: {text}}}\n")
    config = load_config(tmp_path / "agent.yaml", {"ENCLAVE_AGENT_ACCEL": "tcg"})
    assert config.qemu.cage == text.strip("'")
    assert load_config(tmp_path / "agent.yaml", {"ENCLAVE_AGENT_QEMU__CAGE": ""}).qemu.cage is None


@pytest.mark.parametrize("text", ["off", "'off'", "systemd_creds"])
def test_secrets_at_rest_may_be_written_as_the_manual_has_it(tmp_path: Path, text: str):
    (tmp_path / "agent.yaml").write_text(f"secrets: {{at_rest: {text}}}\n")
    config = load_config(tmp_path / "agent.yaml", {})
    assert config.secrets.at_rest == text.strip("'")


@pytest.mark.parametrize(
    "source", ["/srv/releases", "https://r.example/base", "https://[::1]:8443", "file:///srv"]
)
def test_a_release_source_is_a_directory_or_a_protected_url(tmp_path: Path, source: str):
    config = load_config(write(tmp_path, {"releases": {"source": source}}), {})
    assert config.releases.source == source


def test_unknown_settings_are_told(tmp_path: Path):
    tree = {"teee": "auto", "update": {"soak": 1, "a\nb": 2}, 8080: 1, "x" * 99: 1}
    assert sorted(problems_of(write(tmp_path, tree))) == [
        "8080: no such setting",
        "teee: no such setting",
        "update.'a\\nb': no such setting",
        "update.soak: no such setting",
        "x" * 64 + ": no such setting",
    ]


def test_a_section_that_is_none_is_told(tmp_path: Path):
    tree = {"update": 5, "listen": {"tls": "yes"}, "log": []}
    assert set(problems_of(write(tmp_path, tree))) == {
        "update: must be a mapping of settings",
        "listen.tls: must be a mapping of settings",
        "log: must be a mapping of settings",
    }
    (tmp_path / "agent.yaml").write_text("- a list\n")
    assert problems_of(tmp_path / "agent.yaml") == ("the file: must be a mapping of settings",)


def test_what_a_section_must_have_is_told(tmp_path: Path):
    problems = problems_of(write(tmp_path, {"listen": {"tls": {"key": "k"}}}))
    assert problems == (
        "listen.tls.certificate: must be set",
        "listen.tls.ca: must be set",
        "listen.tls.trust_domain: must be set",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tee: auto\ntee: tdx\n", "line 2, column 1: a key that is there twice"),
        ("a: &a [x]\nb: *a\n", "line 2, column 4: an alias"),
        ("a: 1\n---\nb: 1\n", "line 2, column 1: a second document"),
        ("a: [\n", "line 2, column 1"),
        ("[" * 1000, "nested deeper"),
        ("a: " + "x" * (10 << 20), "longer than 1048576 bytes"),
        ("tee: !!python/name:os.system ''\n", "a tag"),
    ],
)
def test_yaml_that_is_clever_or_broken_is_told_with_its_place(
    tmp_path: Path, text: str, reason: str
):
    (tmp_path / "agent.yaml").write_text(text)
    (problem,) = problems_of(tmp_path / "agent.yaml")
    assert problem.startswith(f"{tmp_path}/agent.yaml: ")
    assert reason in problem


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path):
    assert problems_of(tmp_path / "absent") == (f"{tmp_path}/absent: No such file or directory",)
    assert problems_of(tmp_path) == (f"{tmp_path}: Is a directory",)


def test_a_long_value_makes_no_long_line(tmp_path: Path):
    (problem,) = problems_of(write(tmp_path, {"network": {"subnet": "x" * 900_000}}))
    assert len(problem) < 300


def test_a_plain_vm_needs_consent(tmp_path: Path):
    path = write(tmp_path, {"tee": "none"})
    assert problems_of(path) == ("allow_unattested: must be true for tee: none",)
    config = load_config(path, {"ENCLAVE_AGENT_ALLOW_UNATTESTED": "true"})
    assert config.allow_unattested


def test_directories_and_listeners_must_not_be_the_same(tmp_path: Path):
    tree = {"state_dir": "/x", "run_dir": "/x/", "listen": {"tls": TLS, "rpc": "0.0.0.0:8470"}}
    assert problems_of(write(tmp_path, tree)) == (
        "run_dir: must be another directory than state_dir",
        "listen.rpc: must not take the same connections as listen.status",
    )


def test_a_floating_address_is_none_of_the_guests(tmp_path: Path):
    tree = {"network": {"subnet": "10.9.0.0/16"}, "listen": {"floating": ["10.9.8.0/24"]}}
    expected = ("listen.floating: number 1: must not overlap network.subnet",)
    assert problems_of(write(tmp_path, tree)) == expected


def test_the_environment_replaces_what_the_file_says(tmp_path: Path):
    path = write(tmp_path, {"update": {"soak_s": "wrong"}, "tee": "tdx"})
    config = load_config(
        path,
        {
            "ENCLAVE_AGENT_TEE": "simulated",
            "ENCLAVE_AGENT_HOST_ID": "123",
            "ENCLAVE_AGENT_HOST__SYSFS_ROOT": "/tmp/sys",
            "ENCLAVE_AGENT_HOST__GPU_GROUP_SIZES": "[1, 4]",
            "ENCLAVE_AGENT_UPDATE__SOAK_S": "1.5",
            "ENCLAVE_AGENT_UPDATE__BOOT_DEADLINE_S": "auto",
            "ENCLAVE_AGENT_NETWORK__HOST_PORTS": "[53]",
            "ENCLAVE_AGENT_LISTEN__STATUS": "",
            "ENCLAVE_AGENT_SECRETS__AT_REST": "off",
            "ENCLAVE_AGENT_SOCKET": "/of/the/command/line",
            "PATH": "/bin",
        },
    )
    assert config.tee is Tee.SIMULATED
    assert config.host_id == "123"
    assert config.host.sysfs_root == Path("/tmp/sys")
    assert config.host.gpu_group_sizes == (1, 4)
    assert config.update.soak_s == 1.5
    assert config.update.boot_deadline_s == "auto"
    assert config.network.host_ports == (53,)
    assert config.listen.status is None
    assert config.secrets.at_rest == "off"


def test_the_environment_can_make_a_section(tmp_path: Path):
    environ = {f"ENCLAVE_AGENT_LISTEN__TLS__{k.upper()}": f"/{v}" for k, v in TLS.items()}
    environ["ENCLAVE_AGENT_LISTEN__TLS__TRUST_DOMAIN"] = "fleet.example"
    config = load_config(None, environ)
    assert config.listen.tls is not None
    assert config.listen.tls.key == Path("/a.key")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ENCLAVE_AGENT_TEEE", "x", "no such setting"),
        ("ENCLAVE_AGENT_UPDATE", "{}", "no such setting"),
        ("ENCLAVE_AGENT_UPDATE__SOAK", "1", "no such setting"),
        ("ENCLAVE_AGENT_", "1", "no such setting"),
        ("ENCLAVE_AGENT_UPDATE__SOAK_S", "", "expected float"),
        ("ENCLAVE_AGENT_UPDATE__SOAK_S", "[", "expected float"),
        ("ENCLAVE_AGENT_UPDATE__SOAK_S", "-1", "must be 0 to 86400"),
        ("ENCLAVE_AGENT_STATE_DIR", "relative", "must be an absolute path"),
        ("ENCLAVE_AGENT_TEE", "sgx", "one of"),
    ],
)
def test_a_wrong_variable_is_told_by_its_name(name: str, value: str, reason: str):
    (problem,) = problems_of(None, **{name: value})
    assert problem.startswith(f"{name}: ")
    assert reason in problem


@settings(max_examples=200)
@given(
    field=st.sampled_from(sorted(WRONG)),
    value=st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=30)
    | st.lists(st.integers() | st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
def test_no_value_of_any_field_is_more_than_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
):
    directory = tmp_path_factory.mktemp("config")
    with contextlib.suppress(ConfigError):
        load_config(write(directory, tree_of(field, value)), {})
