"""What each field of the configuration may be, beyond its type. Pure.

A check returns the reason against a value, or None. Every field that is not a mere switch, an
enumeration or a path has one in `CHECKS`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from agent.config import TdxPlatform
from agent.model.egress import parse_allowed
from agent.model.gpu_selection import GPU_ADDRESS
from agent.model.resources import Listen
from agent.model.shape import FIXED_DISKS, Shape
from agent.model.tcb_status import TcbStatus
from agent.wire.text import DOMAIN_PATTERN

Check = Callable[[Any], str | None]

_LONGEST_NAME = 253  # of a host, in DNS
_SUBNET_PREFIXES = range(16, 31)
_WIDEST_FLOATING_4, _WIDEST_FLOATING_6 = 16, 48
_PRIVATE = tuple(
    ipaddress.IPv4Network(net) for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
)
_LOOPBACK = ipaddress.IPv4Network("127.0.0.0/8")


def _between(low: float, high: float) -> Check:
    """NaN is between nothing."""
    return lambda value: None if low <= value <= high else f"must be {low} to {high}"


def _one_of(*words: str) -> Check:
    return lambda value: None if value in words else f"must be one of {', '.join(words)}"


def _matching(pattern: str, rule: str) -> Check:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: None if compiled.fullmatch(value) else f"must be {rule}"


def _optional(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _subnet(value: str) -> str | None:
    try:
        net = ipaddress.IPv4Network(value)
    except ValueError as error:
        return f"must be an IPv4 subnet in CIDR notation: {error}"
    if net.prefixlen not in _SUBNET_PREFIXES:
        return "must be a /16 to a /30"
    if not any(net.subnet_of(private) for private in _PRIVATE):
        return "must be a private subnet (RFC 1918)"
    return None


def _loopback_subnet(value: str) -> str | None:
    try:
        net = ipaddress.IPv4Network(value)
    except ValueError as error:
        return f"must be an IPv4 subnet in CIDR notation: {error}"
    if net.prefixlen not in _SUBNET_PREFIXES:
        return "must be a /16 to a /30"
    if not net.subnet_of(_LOOPBACK) or ipaddress.IPv4Address("127.0.0.1") in net:
        return "must lie in 127.0.0.0/8 and not hold 127.0.0.1"
    return None


def _ports(value: tuple[int, ...]) -> str | None:
    if not all(1 <= port <= 65535 for port in value):
        return "ports must be 1 to 65535"
    return "must not name a port twice" if len(set(value)) != len(value) else None


def _allowed(value: str) -> str | None:
    try:
        parse_allowed(value)
    except ValueError as error:
        return str(error)
    return None


def _group_sizes(value: str | tuple[int, ...]) -> str | None:
    if isinstance(value, str):
        return None if value == "auto" else "must be auto or a list of numbers"
    if not value or len(set(value)) != len(value) or not all(1 <= n <= 16 for n in value):
        return "must be auto or a list of different numbers, 1 to 16"
    return None


def _gpu_word(value: str) -> str | None:
    """What no GPU could ever be called."""
    if not re.fullmatch(r"[!-~]([ -~]{0,126}[!-~])?", value):
        return "must be a UUID, a PCI address, slot:NAME or model:NAME"
    digits = re.fullmatch(r"[0-9A-Fa-f:.]+", value)
    if digits and ":" in value and not re.fullmatch(GPU_ADDRESS, value, re.IGNORECASE):
        return "must be a whole PCI address, as 0000:18:00.0"
    return None


def _boot_deadline(value: str | float) -> str | None:
    if isinstance(value, str):
        return None if value == "auto" else "must be auto or a number of seconds"
    return _between(1, 86400)(value)


def _share(value: str | int) -> str | None:
    if isinstance(value, str):
        return None if value == "auto" else "must be auto or a number"
    return _between(1, 1 << 24)(value)


def _listen(value: str) -> str | None:
    try:
        Listen.parse(value)
    except ValueError as error:
        return str(error)
    return None


def _floating(value: str) -> str | None:
    """Narrow enough to be somebody's addresses, and of a kind that takes connections."""
    try:
        net = ipaddress.ip_network(value)
    except ValueError as error:
        return f"must be a subnet in CIDR notation: {error}"
    if net.prefixlen < (_WIDEST_FLOATING_4 if net.version == 4 else _WIDEST_FLOATING_6):
        return "must be a /16 or narrower (IPv6: a /48): it lets deployments listen anywhere in it"
    if net.is_loopback or net.is_multicast or net.is_unspecified or net.is_reserved:
        return "must hold addresses of links: not loopback, multicast or reserved ones"
    return None


def _loopback_listen(value: str) -> str | None:
    if reason := _listen(value):
        return reason
    if not ipaddress.ip_address(Listen.parse(value).address).is_loopback:
        return "must be a loopback address: whoever reaches it may read"
    return None


def _https_url(value: str) -> str | None:
    try:
        url = urlsplit(value)
        port_ok = url.port is None or url.port > 0
    except ValueError:
        return "must be an https URL"
    if url.scheme != "https" or not url.hostname or not port_ok:
        return "must be an https URL"
    if url.username or url.password or url.query or url.fragment:
        return "must be an https URL without credentials, query and fragment"
    return None


def _source(value: str) -> str | None:
    """A directory (its path was made absolute before), a file: URL, an https URL, or github."""
    if value.startswith("/") or value == "github":
        return None
    if value.startswith("github:"):
        reason = _https_url(f"https://{value.removeprefix('github:')}")
        return "must be github:HOST or github:HOST:PORT" if reason or "/" in value else None
    url = urlsplit(value)
    if url.scheme == "file":
        bare = not (url.netloc or url.query or url.fragment)
        return None if bare and url.path.startswith("/") else "must be file:///DIRECTORY"
    if url.scheme == "http":
        return "must be a directory, an https URL or github; http is not protected"
    reason = _https_url(value)
    return reason and f"{reason}, a directory, or github"


def _default_domain(value: str) -> str | None:
    """Before it comes the name of a deployment, of at most 63 characters and a dot."""
    if not re.fullmatch(DOMAIN_PATTERN, f"x.{value}") or len(value) > _LONGEST_NAME - 64:
        return "must be a host name in lower case, of at most 189 characters and 7 labels"
    return None


def _each(check: Check) -> Check:
    """Told by the place in the list, from 1; nothing may be there twice."""

    def checked(values: tuple[Any, ...]) -> str | None:
        for number, value in enumerate(values, 1):
            if reason := check(value):
                return f"number {number}: {reason}"
        return "must not name one twice" if len(set(values)) != len(values) else None

    return checked


def _hex(size: int) -> Check:
    return _matching(rf"[0-9a-f]{{{2 * size}}}", f"{2 * size} digits of hex in lower case")


def _tdx_platform(value: TdxPlatform) -> str | None:
    for name, register in (("mrtd", value.mrtd), ("rtmr0", value.rtmr0)):
        if reason := _hex(48)(register):
            return f"{name} {reason}"
    if value.name is not None and not re.fullmatch(r"[ -~]{1,64}", value.name):
        return "name must be 1 to 64 printable characters"
    return _shape(value.shape) if value.shape is not None else None


def _shape(value: Shape) -> str | None:
    for name, number, least in (
        ("cpus", value.cpus, 1),
        ("memory_mb", value.memory_mb, 1),
        ("gpus", value.gpus, 0),
        ("disks", value.disks, FIXED_DISKS),
    ):
        if not least <= number < 1 << 31:
            return f"shape.{name} must be at least {least}"
    return None


def _tcb_status(value: TcbStatus) -> str | None:
    return "Revoked cannot be allowed" if value is TcbStatus.REVOKED else None


_WORDS = r"[!-z|~]"  # printable, no space, no braces


def _template(*names: str) -> Check:
    """Plain text in which these names may stand, and no other."""
    pattern = "|".join([_WORDS, *(re.escape(f"{{{name}}}") for name in names)])
    rule = " or ".join(f"{{{name}}}" for name in names)
    return _matching(rf"(?:{pattern}){{1,400}}", f"text without spaces, with {rule} in it or not")


_SHA384 = _optional(_hex(48))
_TCBS = ("current_tcb", "reported_tcb", "committed_tcb", "launch_tcb")
_TCB_PARTS = ("bootloader", "tee", "snp", "microcode", "fmc")
_VBIOS = _matching(
    r"[0-9A-F]{2}(\.[0-9A-F]{2}){4}", "five numbers of two hex digits, as '96.00.74.00.01'"
)
_PROGRAM = _matching(r"[^\x00-\x1f\x7f]{1,4096}", "the name or the path of a file")
_SECONDS = _between(0.1, 3600)

CHECKS: dict[str, Check] = {
    "host_id": _matching(
        r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?",
        "auto, or 1 to 64 letters, digits, '.', '_' and '-' between letters or digits",
    ),
    "network.bridge": _matching(
        r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}", "an interface's name of at most 15 letters and digits"
    ),
    "network.subnet": _subnet,
    "network.loopback_subnet": _loopback_subnet,
    "network.host_ports": _ports,
    "network.guest_egress_allow": _each(_allowed),
    "limits.guest_flows": _share,
    "limits.guest_flows_per_s": _between(1, 1_000_000),
    "limits.deployment_connections": _share,
    "limits.deployment_connections_per_s": _between(1, 1_000_000),
    "limits.source_connections": _share,
    "limits.idle_s": _between(60, 7 * 86400),
    "qemu.binary": _PROGRAM,
    "qemu.user": _optional(_matching(r"[a-z_][a-z0-9_-]{0,31}", "the name of a user")),
    "qemu.quote_service": _matching(
        r"vsock:[0-9]{1,9}:[1-9][0-9]{0,8}|/[^\x00-\x1f\x7f]{1,106}",
        "vsock:CID:PORT, or the absolute path of a unix socket",
    ),
    "releases.source": _optional(_source),
    "releases.image_sources": _each(_source),
    "releases.default_domain": _optional(_default_domain),
    "releases.cache_max_gib": _between(0.001, 1_000_000),
    "releases.cache_max_age_days": _between(0.01, 36_500),
    "releases.signature.issuer": _https_url,
    "releases.signature.repository": _template("repo"),
    "releases.signature.identity": _template("repository", "tag"),
    "releases.signature.predicate_type": _optional(_https_url),
    "host.nvml_library": _PROGRAM,
    "host.gpu_tools": _PROGRAM,
    "host.gpu_group_sizes": _group_sizes,
    "host.vcpus": _optional(_between(1, 65536)),
    "gpus.include": _optional(_each(_gpu_word)),
    "gpus.exclude": _each(_gpu_word),
    "gpus.stop_units": _each(
        _matching(r"[A-Za-z0-9:_.\\@-]{1,240}\.service", "a unit of systemd's, as NAME.service")
    ),
    "inventory.interval_s": _SECONDS,
    "reserve.memory_mib": _between(0, 1 << 30),
    "reserve.vcpus": _between(0, 65536),
    "update.dwell_s": _between(0, 3600),
    "update.soak_s": _between(0, 86400),
    "store.backup_interval_s": _SECONDS,
    "update.drain_s": _between(0, 86400),
    "update.boot_deadline_s": _boot_deadline,
    "update.pull_allowance_s": _between(0, 86400),
    "update.stop_grace_s": _between(0.1, 3600),
    "probes.interval_s": _SECONDS,
    "probes.timeout_s": _SECONDS,
    "probes.success_threshold": _between(1, 100),
    "probes.failure_threshold": _between(1, 100),
    "probes.outside": _one_of("auto", "never"),
    "relaunch_unhealthy_after_s": _optional(_between(10, 86400)),
    "attestation.interval_s": _between(1, 86400),
    "attestation.on_loss": _one_of("degrade", "drop_traffic"),
    "attestation.snp.max_vmpl": _between(0, 3),
    "attestation.snp.minimum_abi": _matching(
        r"(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})", "MAJOR.MINOR in quotes, as '1.55'"
    ),
    "attestation.snp.minimum_guest_svn": _between(0, 2**32 - 1),
    **{f"attestation.snp.minimum.{part}": _between(0, 255) for part in _TCB_PARTS},
    "attestation.snp.minimum.launch_mitigations": _between(0, 2**64 - 1),
    "attestation.snp.minimum.current_mitigations": _between(0, 2**64 - 1),
    **{f"attestation.snp.{tcb}.{part}": _between(0, 255) for tcb in _TCBS for part in _TCB_PARTS},
    "attestation.snp.id_key_digest": _SHA384,
    "attestation.snp.author_key_digest": _SHA384,
    "attestation.tdx.platforms": _each(_tdx_platform),
    "attestation.tdx.mrseams": _each(_hex(48)),
    "attestation.tdx.tcb_statuses": _each(_tcb_status),
    "attestation.tdx.refused_advisories": _each(
        _matching(r"[A-Z0-9][A-Z0-9-]{0,31}", "an advisory, as INTEL-SA-00960")
    ),
    "attestation.tdx.minimum_tcb_evaluation_data_number": _between(0, 2**31 - 1),
    "attestation.tdx.minimum_tee_tcb_svn": _hex(16),
    "attestation.tdx.fmspcs": _optional(_each(_hex(6))),
    "attestation.tdx.td_attributes": _hex(8),
    "attestation.tdx.xfam": _hex(8),
    "attestation.gpu.minimum_driver": _optional(
        _matching(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", "a driver's version in quotes, as '580.95.05'")
    ),
    **{
        f"attestation.gpu.minimum_vbios.{line}": _optional(_VBIOS)
        for line in ("hopper", "blackwell", "nvswitch")
    },
    "attestation.collateral.amd_url": _https_url,
    "attestation.collateral.intel_url": _https_url,
    "attestation.collateral.intel_root_crl_url": _https_url,
    "attestation.collateral.nvidia_rim_url": _https_url,
    "attestation.collateral.listen": _optional(_listen),
    "secrets.at_rest": _one_of("off", "systemd_creds"),
    "listen.status": _optional(_loopback_listen),
    "listen.status_names": _each(
        _matching(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a host name in lower case")
    ),
    "listen.rpc": _optional(_listen),
    "listen.floating": _each(_floating),
    "listen.tls.trust_domain": _matching(
        r"[a-z0-9]([a-z0-9._-]{0,253}[a-z0-9])?", "a trust domain of a-z, 0-9, '.', '_' and '-'"
    ),
    "coordinator.url": _optional(_https_url),
    "coordinator.interval_s": _SECONDS,
    "log.level": _one_of("debug", "info", "warning", "error"),
    "log.format": _one_of("auto", "text", "json"),
}
