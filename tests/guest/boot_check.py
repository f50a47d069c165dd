#!/usr/bin/env python3
"""Boot the reference guest as the contract's table says and look at what it does.

Needs only python3, qemu-system-x86_64 and an image that scripts/build-guest made. It
runs under TCG, and takes user-mode networking on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parent.parent.parent
CMDLINE = ("readonly=on pci=realloc,nocrs modprobe.blacklist=nouveau nouveau.modeset=0 "
           "root=/dev/mapper/root roothash={root} tinfoil-config-hash={config}")
SECRET = "correct-horse-battery-staple"
INBOUND = 8080
STAGES = ["config", "network", "identity", "cpu-attestation", "gpu-attestation", "certificate",
          "vault-secrets", "registry-auth", "firewall", "models", "containers", "shim"]
CONFIG = """\
cvm-version: 0.11.0
cpus: 1
memory: 256
cvm-network:
  inbound-ports: [8080]
containers:
  - name: web
    image: "example.invalid/web:1@sha256:{zeros}"
    env:
      - COLOUR: "red"
      - REGION
    secrets: [API_KEY]
    healthcheck: {{test: [CMD, "true"], interval: 1s, start_period: 6s, retries: 1}}
  - name: worker
    image: "example.invalid/worker:1@sha256:{zeros}"
shim:
  upstream-port: 8080
"""
EXTERNAL = """\
env:
  REGION: "north"
  GUEST_CONSOLE: "1"
{external_env}secrets:
  API_KEY: "{secret}"
metadata: {{id: "abcd2345", domain: "web.example.invalid", image: "guest", cpu: "tcg", gpu: "",
  repo: "example/web", tag: "v7", digest: "sha256:{zeros}"}}
network: {{address: 10.0.2.15/24, gateway: 10.0.2.2}}
"""


class CheckError(Exception):
    """An expectation that did not hold."""


def expect(holds: object, what: str) -> None:
    """Raise CheckError unless something holds."""
    if not holds:
        raise CheckError(what)


class Machine:
    """One QEMU with the contract's devices, in a directory of its own."""

    def __init__(self, options: argparse.Namespace, directory: Path, *,
                 behaviour: dict[str, str] | None = None, root_disk: Path | None = None,
                 root_hash: str | None = None, config_hash: str | None = None,
                 extra: list[str] | None = None, words: str = "",
                 edit: Callable[[str], str] = str) -> None:
        image = json.loads((options.image / "image.json").read_text())
        self.console_path = directory / "console"
        self.qmp_path = directory / "qmp"
        given = {"DOMAIN": "web.example.invalid"} | (behaviour or {})
        lines = "".join(f'  {k}: "{v}"\n' for k, v in given.items())
        config = CONFIG.format(zeros="0" * 64).encode()
        external = edit(
            EXTERNAL.format(external_env=lines, secret=SECRET, zeros="0" * 64)).encode()
        self.tls_port, self.plain_port = free_ports(2)
        files = {kind: options.image / name for kind, name in image["files"].items()}
        cmdline = CMDLINE.format(root=root_hash or image["root"],
                                 config=config_hash or hashlib.sha256(config).hexdigest()) + words
        argv = [
            "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-cpu", options.cpu,
            "-smp", str(options.smp), "-m", str(options.memory), "-nodefaults", "-display", "none",
            "-no-reboot", "-no-shutdown",
            "-kernel", str(files["kernel"]), "-initrd", str(files["initrd"]), "-append", cmdline,
            "-chardev", f"file,id=console,path={self.console_path}", "-serial", "chardev:console",
            "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
            "-netdev", "user,id=net,restrict=off"
            f",hostfwd=tcp:127.0.0.1:{self.tls_port}-:443"
            f",hostfwd=tcp:127.0.0.1:{self.plain_port}-:{INBOUND}",
            "-device", "virtio-net-pci,netdev=net,addr=02.0,disable-legacy=on,romfile=",
        ]
        for address, serial, path in (
                ("04.0", "tinfoil-rootdisk", root_disk or files["raw"]),
                ("05.0", "tinfoil-config", padded(directory / "config", config)),
                ("06.0", "tinfoil-ext-config", padded(directory / "external", external))):
            argv += ["-drive", f"if=none,id={serial},file={path},format=raw,readonly=on",
                     "-device", f"virtio-blk-pci,drive={serial},addr={address},serial={serial},"
                     "disable-legacy=on"]
        argv += extra or []
        self.started = time.monotonic()
        self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        self.qmp: Any = None

    def console(self) -> str:
        """What the guest printed so far."""
        try:
            return self.console_path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def command(self, name: str, **arguments: object) -> Any:
        """Run one QMP command."""
        if self.qmp is None:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(self.qmp_path))
            self.qmp = connection.makefile("rw")
            self.qmp.readline()
            self.command("qmp_capabilities")
        self.qmp.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.qmp.flush()
        while True:
            answer = json.loads(self.qmp.readline())
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise CheckError(f"QMP {name}: {answer['error']}")

    def status(self) -> str:
        """QEMU's run state; a guest that ended stays as `shutdown`."""
        return str(self.command("query-status")["status"])

    def https(self, path: str, **headers: str) -> tuple[int, Any]:
        """GET over TLS, whatever the certificate. What is not JSON is None."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.tls_port, timeout=5,
                                                 context=trusting())
        with contextlib.closing(connection):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            body = response.read()
            return response.status, json.loads(body) if body[:1] in (b"{", b"[") else None

    def plain(self, path: str) -> tuple[int, Any]:
        """GET over the inbound port."""
        connection = http.client.HTTPConnection("127.0.0.1", self.plain_port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def spki(self) -> str:
        """Digest of the certificate that is served now (its key changes with it)."""
        with (socket.create_connection(("127.0.0.1", self.tls_port), timeout=5) as raw,
              trusting().wrap_socket(raw) as tls):
            return hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()

    def wait(self, what: str, ready: Callable[[], object], limit_s: float = 120) -> float:
        """Poll until ready; returns the seconds since the machine's start."""
        while time.monotonic() - self.started < limit_s:
            expect(self.process.poll() is None, f"QEMU ended while waiting: {what}")
            with contextlib.suppress(OSError, ssl.SSLError, http.client.HTTPException):
                if ready():
                    return time.monotonic() - self.started
            time.sleep(0.02)
        raise CheckError(f"not within {limit_s} s: {what}")

    def processor_s(self) -> float:
        """Processor time that QEMU has used: a better measure than the clock where the
        machine is shared.
        """
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait_listening(self) -> float:
        """Wait until the console says that 443 is open.

        User-mode networking accepts a connection before the guest does, and then repeats
        its SYN ever more slowly: asking too early would measure that instead.
        """
        return self.wait("listening", lambda: "serving on 443" in self.console())

    def wait_healthy(self, limit_s: float = 120) -> float:
        """Wait for the first healthy answer."""
        self.wait_listening()
        return self.wait("healthy", lambda: self.https("/health")[0] == 200, limit_s)

    def wait_end(self) -> None:
        """Wait until the guest has ended, by power off or reset."""
        self.wait("the guest's end", lambda: self.status() == "shutdown")

    def close(self) -> None:
        """End QEMU."""
        self.process.kill()
        self.process.wait()


def trusting() -> ssl.SSLContext:
    """A TLS context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for item in sockets:
            item.bind(("127.0.0.1", 0))
        return [item.getsockname()[1] for item in sockets]


def padded(path: Path, payload: bytes) -> Path:
    """Write a config disk."""
    path.write_bytes(payload + bytes(-len(payload) % 4096))
    return path


@contextlib.contextmanager
def machine(options: argparse.Namespace, **special: Any) -> Iterator[Machine]:
    """A running machine; its console is shown if the check fails."""
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        running = Machine(options, Path(directory), **special)
        try:
            yield running
        except BaseException:
            print("--- console ---\n" + running.console()[-4000:] + "---", file=sys.stderr)
            raise
        finally:
            running.close()
        if options.console:
            print(running.console())


def check_boot(options: argparse.Namespace) -> str:
    """The plain boot: times, every endpoint, streams, echo, power button."""
    with machine(options) as vm:
        vm.wait_listening()
        seen = vm.wait("first answer on 443",
                       lambda: vm.https("/.well-known/tinfoil-boot-stages")[0] == 200)
        healthy = vm.wait_healthy()
        spent = vm.processor_s()
        check_documents(vm)
        check_workload(vm)
        check_streams(vm)
        expect(SECRET not in vm.console(), "the console shows a secret")
        off = check_power_button(vm)
    return (f"first answer {seen:.2f} s, healthy {healthy:.2f} s (processor {spent:.2f} s), "
            f"powered off in {off:.2f} s")


def check_documents(vm: Machine) -> None:
    """The contract's documents have the contract's shape."""
    _, boot = vm.https("/.well-known/tinfoil-boot-stages")
    expect([s["name"] for s in boot["stages"]] == STAGES, f"stages: {boot}")
    expect(all(s["status"] in ("ok", "skipped") for s in boot["stages"]), f"stages: {boot}")
    expect(not boot["completed_at"].startswith("0001"), f"not completed: {boot}")
    _, listed = vm.https("/.well-known/tinfoil-containers")
    expect(health(vm) == {"web": ("running", "healthy"), "worker": ("running", None)},
           f"containers: {listed}")
    expect(all(c["played"] for c in listed["containers"]), f"containers: {listed}")
    expect([c["name"] for c in listed["containers"]] == ["web", "worker"], f"containers: {listed}")
    _, certificate = vm.https("/.well-known/tinfoil-certificate")
    der = ssl.PEM_cert_to_DER_cert(certificate["certificate"])
    expect(hashlib.sha256(der).hexdigest() == vm.spki(), "another certificate than the one served")
    status, refused = vm.https("/.well-known/tinfoil-attestation?nonce=" + "0" * 64)
    expect(status == 503 and refused["error"]["message"], f"attestation: {status} {refused}")
    _, metrics = vm.https("/.well-known/tinfoil-metrics")
    expect(metrics["cpu_mem_total"] > 0 and metrics["gpu_util"] is None, f"metrics: {metrics}")


def check_workload(vm: Machine) -> None:
    """Both doors show the same workload, and no secret."""
    for get in (vm.https, vm.plain):
        status, answer = get("/any/path")
        expect(status == 200 and answer["version"] == "v7" and answer["id"] == "abcd2345",
               f"workload: {status} {answer}")
        expect(answer["env"] == {"COLOUR": "red", "REGION": "north",
                                 "DOMAIN": "web.example.invalid"}, f"env: {answer}")
        digest = hashlib.sha256(SECRET.encode()).hexdigest()
        expect(answer["secrets"] == {"API_KEY": digest}, f"secrets: {answer}")
        expect(answer["remote"] and answer["uptime_s"] > 0, f"workload: {answer}")


def check_streams(vm: Machine) -> None:
    """/stream drips, /echo echoes while the body comes and honours a half-close."""
    connection = http.client.HTTPConnection("127.0.0.1", vm.plain_port, timeout=5)
    begin = time.monotonic()
    connection.request("GET", "/stream?seconds=1")
    body = connection.getresponse().read()
    took = time.monotonic() - begin
    expect(body.count(b"chunk") == 10 and 0.8 < took < 2.5, f"stream: {took:.2f} s, {body!r}")
    for wrap in (False, True):
        port = vm.tls_port if wrap else vm.plain_port
        raw = socket.create_connection(("127.0.0.1", port), timeout=5)
        with trusting().wrap_socket(raw) if wrap else raw as sock:
            sock.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\n"
                         + (b"Content-Length: 9\r\n" if wrap else b"") + b"\r\nping")
            got = read_until(sock, b"ping")
            sock.sendall(b"-pong")
            if not wrap:
                sock.shutdown(socket.SHUT_WR)
            got += read_until(sock, None)
            expect(got.endswith(b"\r\n\r\nping-pong"), f"echo: {got!r}")


def read_until(sock: socket.socket, end: bytes | None) -> bytes:
    """Read until the data ends so, or until the peer closes."""
    got = b""
    while end is None or not got.endswith(end):
        piece = sock.recv(4096)
        if not piece:
            expect(end is None, f"closed early: {got!r}")
            break
        got += piece
    return got


def check_power_button(vm: Machine) -> float:
    """system_powerdown ends open connections with a FIN and the machine soon after."""
    idle = socket.create_connection(("127.0.0.1", vm.plain_port), timeout=5)
    stream = socket.create_connection(("127.0.0.1", vm.plain_port), timeout=5)
    stream.sendall(b"GET /stream?seconds=60 HTTP/1.1\r\nHost: x\r\n\r\n")
    read_until(stream, b"chunk 0\n\r\n")
    begin = time.monotonic()
    vm.command("system_powerdown")
    for sock in (idle, stream):
        read_until(sock, None)
    vm.wait_end()
    took = time.monotonic() - begin
    expect(took < 2, f"power off took {took:.2f} s")
    return took


def check_tampered_disk(options: argparse.Namespace) -> str:
    """A flipped byte anywhere in the data, or another root hash: no boot."""
    image = json.loads((options.image / "image.json").read_text())
    original = options.image / image["files"]["raw"]
    places = {"the superblock's block": (1 << 20) + 100, "the program": (1 << 20) + (3 << 20)}
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        for where, offset in places.items():
            disk = Path(directory) / "disk"
            shutil.copyfile(original, disk)
            with disk.open("r+b") as file:
                file.seek(offset)
                byte = file.read(1)[0]
                file.seek(offset)
                file.write(bytes([byte ^ 1]))
            refused(options, where, root_disk=disk)
    refused(options, "another root hash", root_hash="0" * 64)
    return "refused: " + ", ".join([*places, "another root hash"])


def refused(options: argparse.Namespace, why: str, **special: Any) -> None:
    """The machine ends by itself, says why, and never serves."""
    with machine(options, **special) as vm:
        vm.wait_end()
        expect("guest: no boot:" in vm.console(), f"{why}: the console does not say why")
        expect("boot stage" not in vm.console(), f"{why}: the guest program ran")


def check_wrong_config_hash(options: argparse.Namespace) -> str:
    """A config that is not the measured one: parked, or visible where it does not park."""
    with machine(options, config_hash="0" * 64) as vm:
        vm.wait("parked", lambda: "parked" in vm.console())
        expect(refuses(vm), "a parked guest answers")
    with machine(options, config_hash="0" * 64, behaviour={"GUEST_PARKS": "0"}) as vm:
        vm.wait_listening()
        vm.wait("boot failed", lambda: stage(vm, "config")["status"] == "failed")
        vm.wait("settled", lambda: stage(vm, "shim")["status"] == "skipped")
        status, answer = vm.https("/health")
        expect(status == 503 and answer["error"]["status"] == "failed", f"{status} {answer}")
        expect(answer["boot"]["stages"], f"{answer}")
        return str(stage(vm, "config")["detail"])[:40]


def refuses(vm: Machine) -> bool:
    """Whether 443 is refused: user-mode networking then closes what it accepted."""
    try:
        vm.https("/")
    except (OSError, http.client.HTTPException):
        return True
    return False


def check_manners(options: argparse.Namespace) -> str:
    """What the public guest does in every boot, in the order in which it is seen."""
    asked = {"GUEST_SHIM_POLL_S": "1.5", "GUEST_SHIM_RESTART_S": "2",
             "GUEST_SLOW_STAGE": "models:3", "GUEST_HEALTHY_AFTER_S": "6"}
    with machine(options, behaviour=asked, edit=with_guards) as vm:
        vm.wait_listening()
        first = vm.spki()
        expect(vm.https("/")[0] == 503 and vm.https("/")[1] is None, "the shim is not starting")
        expect(vm.https("/.well-known/tinfoil-metrics")[0] == 503, "metrics before an identity")
        vm.wait("the identity", lambda: vm.spki() != first)
        real = vm.spki()
        _, boot = vm.https("/.well-known/tinfoil-boot-stages")
        expect(boot["completed_at"].startswith("0001-"), f"completed early: {boot}")
        status, answer = vm.https("/")
        expect((status, answer["error"]["status"]) == (503, "pending"), f"early: {answer}")
        vm.wait("a started container", lambda: container_phases(vm, "web").get("start") == "ok")
        expect(container_phases(vm, "web")["healthy"] == "pending", "not within the boot")
        expect(vm.https("/.well-known/tinfoil-containers")[0] == 503, "containers before the end")
        vm.wait("the restart", lambda: refuses(vm))
        vm.wait("another ephemeral key", lambda: vm.spki() not in (first, real))
        vm.wait("the identity again", lambda: vm.spki() == real)
        vm.wait_healthy()
        metrics = "/.well-known/tinfoil-metrics"
        expect(vm.https(metrics)[0] == 401, "metrics without the key")
        expect(vm.https(metrics, Authorization="Bearer m3trics")[0] == 200, "metrics with it")
    return "ephemeral key, identity, containers in the boot, restart, guarded metrics"


def with_guards(external: str) -> str:
    """An external config with a key for the metrics."""
    return external.replace("secrets:\n", 'secrets:\n  METRICS_API_KEY: "m3trics"\n')


def container_phases(vm: Machine, name: str) -> dict[str, str]:
    """The substages of one container's start."""
    found = [s for s in stage(vm, "containers").get("stages", []) if s["name"] == name]
    return {s["name"]: s["status"] for one in found for s in one["stages"]}


def check_parked(options: argparse.Namespace) -> str:
    """Boots that fail early: 443 is refused, the machine runs on, deaf."""
    cases: dict[str, dict[str, Any]] = {
        "no domain": {"behaviour": {"DOMAIN": ""}},
        "an empty secret": {"edit": lambda text: text.replace(SECRET, "null")},
        "an unknown member of network":
            {"edit": lambda text: text.replace("network: {", "network: {mtu: 9000, ")},
        "a stage told to fail": {"behaviour": {"GUEST_FAIL_STAGE": "registry-auth"}},
        "a debug image without its console":
            {"words": " tinfoil-debug=on", "behaviour": {"GUEST_CONSOLE": "1"}},
    }
    for what, special in cases.items():
        with machine(options, **special) as vm:
            if "debug" in what:
                time.sleep(40)  # it has no console to tell on
            else:
                vm.wait(f"{what}: parked", lambda vm=vm: "parked" in vm.console())
            expect(refuses(vm), f"{what}: it answers")
            vm.command("system_powerdown")
            time.sleep(1)
            expect(vm.status() == "running", f"{what}: the machine does not run on")
    return ", ".join(cases)


def check_silent(options: argparse.Namespace) -> str:
    """A production image prints nothing on any console; a debug image on hvc0."""
    with machine(options, edit=lambda text: text.replace('GUEST_CONSOLE: "1"', "A: b")) as vm:
        vm.wait("healthy", lambda: vm.https("/health")[0] == 200)
        expect(vm.console() == "", f"the console shows: {vm.console()}")
    with tempfile.TemporaryDirectory(prefix="guest-") as directory:
        told = Path(directory) / "hvc0"
        extra = ["-device", "virtio-serial-pci,addr=1e.0,disable-legacy=on",
                 "-chardev", f"file,id=hvc,path={told}", "-device", "virtconsole,chardev=hvc"]
        with machine(options, words=" tinfoil-debug=on", extra=extra) as vm:
            vm.wait("told on hvc0", lambda: told.exists() and "boot complete" in told.read_text())
            expect(vm.console() == "", "a debug image uses the serial line")
    return "production: nothing; debug: hvc0"


def stage(vm: Machine, name: str) -> Any:
    """One boot stage."""
    _, boot = vm.https("/.well-known/tinfoil-boot-stages")
    return next(s for s in boot["stages"] if s["name"] == name)


def check_rate(options: argparse.Namespace) -> str:
    """New plain connections per second, from a few clients."""
    with machine(options) as vm:
        vm.wait_healthy()
        end = time.monotonic() + 5
        counts: list[int] = []
        failures: list[str] = []

        def load() -> None:
            count = 0
            while time.monotonic() < end:
                try:
                    status, _ = vm.plain("/")
                    expect(status == 200, f"status {status}")
                    count += 1
                except (OSError, http.client.HTTPException, CheckError) as error:
                    failures.append(repr(error))
            counts.append(count)

        clients = [threading.Thread(target=load) for _ in range(options.clients)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        expect(not failures, f"{len(failures)} failed, first: {failures[:1]}")
        return f"{sum(counts) / 5:.0f} new connections/s from {options.clients} clients"


def check_behaviours(options: argparse.Namespace) -> str:
    """What one boot can show of the table, in the order in which it happens."""
    asked = {"GUEST_HEALTHY_AFTER_S": "3", "GUEST_CONTAINER_EXIT_AFTER_S": "15",
             "GUEST_CONTAINER_EXIT_CODE": "137", "GUEST_NEW_KEY_AFTER_S": "20",
             "GUEST_SICK_AFTER_S": "28", "GUEST_SICK_FOR_S": "8", "GUEST_IGNORE_ACPI": "1",
             "GUEST_CONSOLE_MIB": "1", "GUEST_SLOW_STAGE": "models:1",
             "GUEST_FREEZE_AFTER_S": "50"}
    with machine(options, behaviour=asked) as vm:
        vm.wait_listening()
        expect(stage(vm, "models")["status"] == "pending", "the slow stage is not pending")
        vm.wait("slow stage over", lambda: stage(vm, "shim")["status"] == "ok")
        expect(stage(vm, "models")["duration_ns"] > 9e8, "the slow stage was quick")
        vm.wait_healthy()
        expect(health(vm)["worker"] == ("running", None), f"health: {health(vm)}")
        key = vm.spki()
        vm.wait("container exit", lambda: health(vm)["worker"][0] == "exited")
        expect(health(vm)["web"] == ("running", "healthy"), f"health: {health(vm)}")
        vm.wait("another key", lambda: vm.spki() != key)
        vm.wait("sick", lambda: health(vm)["web"][1] == "unhealthy")
        expect(vm.https("/")[0] == 503, "a sick workload answers")
        vm.command("system_powerdown")
        vm.wait("well again", lambda: vm.https("/health")[0] == 200)
        expect("ignored as told" in vm.console(), "the power button was not seen")
        expect(vm.console().count("flood:") > 16000, "the console was not flooded")
        vm.wait("frozen", lambda: timed_out(lambda: vm.plain("/")))
    return ", ".join(asked)


def health(vm: Machine) -> dict[str, tuple[str, str | None]]:
    """(status, health) by container; nothing before their stage is over."""
    _, listed = vm.https("/.well-known/tinfoil-containers")
    return {c["name"]: (c["status"], c.get("health", {}).get("status"))
            for c in (listed or {"containers": []})["containers"]}


def timed_out(call: Callable[[], object]) -> bool:
    """Whether a call hangs until its timeout."""
    try:
        call()
    except TimeoutError:
        return True
    return False


def check_failing(options: argparse.Namespace) -> str:
    """Guests that never serve, and one that holds its streams."""
    with machine(options, behaviour={"GUEST_NEVER_HEALTHY": "1", "GUEST_TYPO": "1"}) as vm:
        vm.wait("told", lambda: "GUEST_TYPO" in vm.console())
    with machine(options, behaviour={"GUEST_NEVER_HEALTHY": "1"}) as vm:
        vm.wait_listening()
        vm.wait("unhealthy", lambda: container_phases(vm, "web").get("healthy") == "failed")
        vm.wait("shim failed", lambda: stage(vm, "shim")["status"] == "failed")
        status, answer = vm.https("/health")
        expect((status, answer["error"]["status"]) == (503, "failed"), f"{status} {answer}")
        expect("web: unhealthy" in stage(vm, "containers")["detail"], "the container is not named")
    with machine(options, behaviour={"GUEST_HOLD_STREAMS": "1"}) as vm:
        vm.wait_healthy()
        stream = socket.create_connection(("127.0.0.1", vm.plain_port), timeout=5)
        stream.sendall(b"GET /stream?seconds=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        read_until(stream, b"chunk 15\n\r\n")
    return "misspelt, never healthy, held stream"


def check_ends(options: argparse.Namespace) -> str:
    """Guests that end by themselves are seen as ended."""
    for variable in ("POWEROFF", "RESET", "PANIC", "EXIT"):
        with machine(options, behaviour={f"GUEST_{variable}_AFTER_S": "1"}) as vm:
            vm.wait_end()
            expect(", as told" in vm.console() or "told by" in vm.console(), "no last words")
    return "power off, reset, panic, exit of PID 1"


CHECKS = {"boot": check_boot, "tampered-disk": check_tampered_disk,
          "wrong-config-hash": check_wrong_config_hash, "rate": check_rate,
          "behaviours": check_behaviours, "manners": check_manners, "parked": check_parked,
          "silent": check_silent, "failing": check_failing, "ends": check_ends}


def main() -> int:
    """Run the checks that are asked for, all if none is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="check", help=", ".join(CHECKS))
    parser.add_argument("--image", type=Path, default=CHECKOUT / ".cache" / "guest")
    parser.add_argument("--cpu", default="qemu64,+rdrand")
    parser.add_argument("--smp", type=int, default=1)
    parser.add_argument("--memory", type=int, default=256, help="MiB")
    parser.add_argument("--clients", type=int, default=4, help="of the rate check")
    parser.add_argument("--console", action="store_true", help="print every console")
    options = parser.parse_args()
    unknown = set(options.checks) - set(CHECKS)
    if unknown:
        parser.error(f"no such check: {', '.join(sorted(unknown))}")
    failed = 0
    for name in options.checks or CHECKS:
        try:
            print(f"ok   {name}: {CHECKS[name](options)}", flush=True)
        except CheckError as error:
            failed += 1
            print(f"FAIL {name}: {error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    os.environ.pop("http_proxy", None)
    sys.exit(main())
