"""A release's signature: genuine ones hold, offline; any other is refused with the reason."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agent.config import SignatureConfig
from agent.errors import describe
from agent.releases.cache import Cache
from agent.releases.naming import MANIFEST, SIGNATURE
from agent.releases.port import ReleaseError, ReleaseSourceError
from agent.releases.signature import (
    MAX_BUNDLE_BYTES,
    Builder,
    SignatureRequiredError,
    SignatureRule,
)
from agent.releases.source import DirectorySource
from agent.releases.store import ReleaseStore
from tests.fakes.https_files import serve_https
from tests.fakes.vectors import case_input, needs_vectors

REPO, TAG = "tinfoilsh/confidential-model-router", "v0.0.38"
FULCIO = "1.3.6.1.4.1.57264.1"
Bundle = dict[str, Any]


@pytest.fixture
def given() -> dict[str, Any]:
    found: dict[str, Any] = case_input("verify-full", "500-standard-flow-sev-happy")["sigstore"]
    return found


@pytest.fixture
def bundle(given: dict[str, Any]) -> Bundle:
    found: Bundle = json.loads(base64.b64decode(given["bundle_b64"]))
    return found


@pytest.fixture
def manifest(bundle: Bundle) -> bytes:
    """The signed file: its content stands in the statement, as the publisher wrote it."""
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    return json.dumps(statement["predicate"], indent=4).encode()


@pytest.fixture
def config(given: dict[str, Any], tmp_path: Path) -> SignatureConfig:
    root = tmp_path / "trusted_root.json"
    root.write_bytes(base64.b64decode(given["trust_root_b64"]))
    return SignatureConfig(trusted_root=root)


def reason(
    config: SignatureConfig,
    manifest: bytes,
    bundle: Bundle | bytes | None,
    *,
    repo: str = REPO,
    tag: str = TAG,
) -> str:
    """Why it is refused; empty if it is not."""
    data = json.dumps(bundle).encode() if isinstance(bundle, dict) else bundle
    try:
        SignatureRule(config).check(repo, tag, hashlib.sha256(manifest).hexdigest(), data)
    except SignatureRequiredError as error:
        return describe(error)
    return ""


@needs_vectors
def test_a_genuine_signature_holds(
    config: SignatureConfig, manifest: bytes, bundle: Bundle
) -> None:
    assert reason(config, manifest, bundle) == ""


@needs_vectors
def test_it_holds_without_any_network(
    config: SignatureConfig, manifest: bytes, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "manifest").write_bytes(manifest)
    (tmp_path / "bundle").write_text(json.dumps(bundle))
    program = f"""
import hashlib, sys
from pathlib import Path
from agent.config import SignatureConfig
from agent.releases.signature import SignatureRule
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.sendmsg"):
        raise SystemExit(f"network: {{event}} {{args}}")
assert "sigstore" not in sys.modules
sys.addaudithook(watch)
at = Path({str(tmp_path)!r})
rule = SignatureRule(SignatureConfig(trusted_root=at / "trusted_root.json"))
digest = hashlib.sha256((at / "manifest").read_bytes()).hexdigest()
rule.check({REPO!r}, {TAG!r}, digest, (at / "bundle").read_bytes())
assert "sigstore" in sys.modules
"""
    empty = {"HOME": str(tmp_path / "nobody"), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=empty)
    assert not (tmp_path / "nobody").exists()


@needs_vectors
@pytest.mark.parametrize(
    ("changes", "repo", "tag", "words"),
    [
        ({}, "tinfoilsh/another", TAG, "not by"),
        ({}, REPO, "v0.0.39", "not by"),
        ({}, "router", TAG, "no OWNER/NAME"),
        ({"repository": "mallory/{repo}"}, "confidential-model-router", TAG, "not by"),
        ({"issuer": "https://issuer.example"}, REPO, TAG, "issuer"),
        ({"identity": "https://a.example/build.yml@refs/tags/{tag}"}, REPO, TAG, "not by"),
        ({"predicate_type": "https://slsa.dev/provenance/v1"}, REPO, TAG, "it states"),
    ],
)
def test_another_builder_is_refused(
    config: SignatureConfig,
    manifest: bytes,
    bundle: Bundle,
    changes: dict[str, str],
    repo: str,
    tag: str,
    words: str,
) -> None:
    other = msgspec.structs.replace(config, **changes)
    assert words in reason(other, manifest, bundle, repo=repo, tag=tag)


@needs_vectors
def test_the_owner_may_be_configured(
    config: SignatureConfig, manifest: bytes, bundle: Bundle
) -> None:
    named = msgspec.structs.replace(config, repository="tinfoilsh/{repo}", predicate_type=None)
    assert reason(named, manifest, bundle, repo="confidential-model-router") == ""


@needs_vectors
def test_another_manifest_is_refused(
    config: SignatureConfig, manifest: bytes, bundle: Bundle
) -> None:
    assert "is about a manifest" in reason(config, manifest + b"\n", bundle)


def test_no_bundle_is_no_signature() -> None:
    with pytest.raises(SignatureRequiredError, match="is not signed") as refused:
        SignatureRule(SignatureConfig()).check(REPO, TAG, "0" * 64, None)
    assert refused.value.code == "signature_required"


def change(bundle: Bundle, *path: str | int, value: Any) -> Bundle:
    changed: Any = copy.deepcopy(bundle)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed  # type: ignore[no-any-return]


def flipped(bundle: Bundle, *path: str | int, share: float = 0.5) -> Bundle:
    """One bit of the bytes that stand there in base64."""
    place: Any = bundle
    for step in path:
        place = place[step]
    data = bytearray(base64.b64decode(place))
    data[int(len(data) * share)] ^= 1
    return change(bundle, *path, value=base64.b64encode(bytes(data)).decode())


LOG: tuple[str | int, ...] = ("verificationMaterial", "tlogEntries", 0)
SIGNATURE_AT: tuple[str | int, ...] = ("dsseEnvelope", "signatures", 0, "sig")


@needs_vectors
@pytest.mark.parametrize(
    "path",
    [
        ("dsseEnvelope", "payload"),
        SIGNATURE_AT,
        ("verificationMaterial", "certificate", "rawBytes"),
        (*LOG, "inclusionPromise", "signedEntryTimestamp"),
        (*LOG, "inclusionProof", "rootHash"),
        (*LOG, "inclusionProof", "hashes", 0),
        (*LOG, "canonicalizedBody"),
        (*LOG, "logId", "keyId"),
    ],
    ids=lambda path: str(path[-1]),
)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_changed_bit_is_refused(
    config: SignatureConfig,
    manifest: bytes,
    bundle: Bundle,
    path: tuple[str | int, ...],
    share: float,
) -> None:
    assert reason(config, manifest, flipped(bundle, *path, share=share))


@needs_vectors
def test_exactly_one_signature_is_taken(
    config: SignatureConfig, manifest: bytes, bundle: Bundle
) -> None:
    (one,) = bundle["dsseEnvelope"]["signatures"]
    for several in ([], [one, one], [one, {"sig": "AA=="}], [{"sig": "AA=="}, one]):
        changed = change(bundle, "dsseEnvelope", "signatures", value=several)
        assert f"it has {len(several)} signatures" in reason(config, manifest, changed)


@needs_vectors
@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("dsseEnvelope", "payloadType"), "application/json"),
        (("verificationMaterial", "tlogEntries"), []),
        ((*LOG, "integratedTime"), "1869121722"),
        ((*LOG, "inclusionPromise"), None),
        ((*LOG, "inclusionProof"), None),
        ((*LOG, "kindVersion", "kind"), "hashedrekord"),
        (("verificationMaterial", "certificate"), None),
        (("mediaType",), "application/vnd.dev.sigstore.bundle.v9+json"),
        (("dsseEnvelope",), None),
        (("dsseEnvelope",), []),
    ],
)
def test_a_bundle_of_another_form_is_refused(
    config: SignatureConfig, manifest: bytes, bundle: Bundle, path: tuple[str, ...], value: Any
) -> None:
    assert reason(config, manifest, change(bundle, *path, value=value))


@needs_vectors
def test_rubbish_is_refused_and_nothing_else(
    config: SignatureConfig, manifest: bytes, bundle: Bundle
) -> None:
    whole = json.dumps(bundle).encode()
    twice = whole.replace(b'"dsseEnvelope":', b'"dsseEnvelope": {}, "dsseEnvelope":', 1)
    assert "twice" in reason(config, manifest, twice)
    rubbish = [b"", b"{}", b"null", b"\xff", b"[" * 100_000, whole + b"x"]
    rubbish += [whole[: len(whole) * n // 20] for n in range(1, 20)]
    for data in rubbish:
        assert reason(config, manifest, data)


@needs_vectors
def test_a_root_with_other_keys_believes_nobody(
    config: SignatureConfig, manifest: bytes, bundle: Bundle
) -> None:
    assert config.trusted_root is not None
    root = json.loads(config.trusted_root.read_bytes())
    for member in ("tlogs", "ctlogs", "certificateAuthorities"):
        config.trusted_root.write_text(json.dumps(root | {member: []}))
        assert reason(config, manifest, bundle), member
    for text in ("", "{", "[]", '{"mediaType": "x"}'):
        config.trusted_root.write_text(text)
        assert "releases.signature.trusted_root" in reason(config, manifest, bundle)
    config.trusted_root.unlink()
    assert "releases.signature.trusted_root" in reason(config, manifest, bundle)
    unset = msgspec.structs.replace(config, trusted_root=None)
    assert "must be set" in reason(unset, manifest, bundle)


WINDOWS = [
    (("tlogs", 0, "publicKey", "validFor"), "no log"),
    (("ctlogs", 1, "publicKey", "validFor"), "no log of its certificate"),
    (("certificateAuthorities", 1, "validFor"), "no authority"),
]


@needs_vectors
@pytest.mark.parametrize(("path", "words"), WINDOWS, ids=lambda one: str(one[0]))
def test_a_key_counts_only_while_the_root_says_that_it_was_valid(
    config: SignatureConfig,
    manifest: bytes,
    bundle: Bundle,
    path: tuple[str | int, ...],
    words: str,
) -> None:
    """The library itself takes every key of the file, whenever it was valid."""
    assert config.trusted_root is not None
    root = json.loads(config.trusted_root.read_bytes())
    signed = int(bundle["verificationMaterial"]["tlogEntries"][0]["integratedTime"])

    def refused(**window: int) -> str:
        ends = {
            end: dt.datetime.fromtimestamp(signed + after, dt.UTC).isoformat()
            for end, after in window.items()
        }
        config.trusted_root.write_text(json.dumps(change(root, *path, value=ends)))
        return reason(config, manifest, bundle)

    assert refused(start=-3600, end=3600) == ""
    assert refused(start=-3600) == ""
    assert words in refused(start=-7200, end=-3600)  # retired before
    assert words in refused(start=3600)  # not yet in use


@needs_vectors
def test_a_log_that_the_root_does_not_name_is_not_held_against_the_other_logs_keys(
    config: SignatureConfig, manifest: bytes, bundle: Bundle
) -> None:
    other = change(bundle, *LOG, "logId", "keyId", value=base64.b64encode(bytes(32)).decode())
    assert "no log 0000000000000000" in reason(config, manifest, other)


@needs_vectors
async def test_a_signed_tag_is_read_and_an_unsigned_one_is_not(
    config: SignatureConfig,
    manifest: bytes,
    bundle: Bundle,
    tmp_path: Path,
    executor: ThreadPoolExecutor,
    make_store: Callable[..., ReleaseStore],
) -> None:
    """The genuine release is of an image version that is not booted here: so it says, then."""
    release = tmp_path / "source" / REPO / TAG
    release.mkdir(parents=True)
    (release / MANIFEST).write_bytes(manifest)
    source = DirectorySource(tmp_path / "source", executor)
    store = make_store(source, signatures=SignatureRule(config))
    with pytest.raises(SignatureRequiredError, match="is not signed"):
        await store.resolve(REPO, TAG)
    (release / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(ReleaseError) as other:
        await store.resolve(REPO, TAG)
    assert other.value.code == "release_invalid"
    (release / SIGNATURE).write_bytes(b" " * (MAX_BUNDLE_BYTES + 1))
    with pytest.raises(ReleaseError, match="longer than"):
        await store.resolve(REPO, TAG)


@dataclass
class Taken:
    """A release that was taken before signatures were required, and where it came from."""

    release: Path
    digest: str
    store: ReleaseStore


@pytest.fixture
async def taken(
    config: SignatureConfig,
    manifest: bytes,
    tmp_path: Path,
    executor: ThreadPoolExecutor,
    make_store: Callable[..., ReleaseStore],
) -> Taken:
    """The genuine manifest of an image that is not booted here lies in the cache as if it were."""
    release = tmp_path / "source" / REPO / TAG
    release.mkdir(parents=True)
    digest = Cache(tmp_path / "cache", 1).keep_manifest(manifest, frozenset())
    source = DirectorySource(tmp_path / "source", executor)
    return Taken(release, digest, make_store(source, signatures=SignatureRule(config)))


async def required(taken: Taken, tag: str = TAG) -> str:
    """Why a release of before is refused today; empty if it is not."""
    try:
        await taken.store.require_signed(REPO, tag, taken.digest)
    except SignatureRequiredError as error:
        return describe(error)
    return ""


@needs_vectors
async def test_a_release_of_before_is_asked_for_its_signature_and_that_is_kept(
    taken: Taken, bundle: Bundle, tmp_path: Path
) -> None:
    assert "is not signed" in await required(taken)
    (taken.release / SIGNATURE).write_text(json.dumps(flipped(bundle, *SIGNATURE_AT)))
    assert "does not verify" in await required(taken)
    (taken.release / SIGNATURE).write_text(json.dumps(bundle))
    assert await required(taken) == ""
    shutil.rmtree(tmp_path / "source")
    assert await required(taken) == ""  # with the source gone
    (kept,) = (tmp_path / "cache" / "manifests").glob("*.signature")
    kept.write_text(json.dumps(flipped(bundle, *SIGNATURE_AT)))
    with pytest.raises(ReleaseSourceError):
        await required(taken)  # what was kept proves nothing any more


@needs_vectors
async def test_a_kept_signature_is_judged_by_today_s_rule(
    taken: Taken, bundle: Bundle, config: SignatureConfig
) -> None:
    (taken.release / SIGNATURE).write_text(json.dumps(bundle))
    assert await required(taken) == ""
    assert "is not signed" in await required(taken, "v0.0.39")  # its own is of another tag
    assert config.trusted_root is not None
    root = json.loads(config.trusted_root.read_bytes())
    config.trusted_root.write_text(json.dumps(root | {"tlogs": root["tlogs"][1:]}))
    assert "no log" in await required(taken)


async def test_where_no_signature_is_required_nothing_is_asked(
    make_store: Callable[..., ReleaseStore],
) -> None:
    await make_store(None).require_signed(REPO, TAG, "0" * 64)


async def test_a_bundle_comes_over_https_as_the_manifest_does(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    from agent.releases.https import HttpsSource

    release = tmp_path / "source" / "hello" / "v1"
    release.mkdir(parents=True)
    async with serve_https(tmp_path / "source", tmp_path) as server:
        source = HttpsSource(server.url, executor, server.trust)
        try:
            assert await source.signature("hello", "v1") is None
            (release / SIGNATURE).write_bytes(b"{}")
            assert await source.signature("hello", "v1") == b"{}"
            (release / SIGNATURE).write_bytes(b" " * (MAX_BUNDLE_BYTES + 1))
            with pytest.raises(ReleaseError, match="longer than"):
                await source.signature("hello", "v1")
        finally:
            await source.close()


NAME = f"https://github.com/{REPO}/.github/workflows/build.yml@refs/tags/{TAG}"
RIGHT = {
    8: "https://token.actions.githubusercontent.com",
    11: "github-hosted",
    12: f"https://github.com/{REPO}",
    14: f"refs/tags/{TAG}",
}


def certificate(
    extensions: dict[int, str | None], names: tuple[x509.GeneralName, ...]
) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    empty = x509.Name([])
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(empty)
        .issuer_name(empty)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(minutes=10))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
    )
    for number, text in (RIGHT | extensions).items():
        if text is not None:
            data = text.encode()
            head = bytes([12, len(data)]) if len(data) < 128 else bytes([12, 0x81, len(data)])
            oid = x509.ObjectIdentifier(f"{FULCIO}.{number}")
            extension = x509.UnrecognizedExtension(oid, head + data)
            builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, hashes.SHA256())


URI = x509.UniformResourceIdentifier


@pytest.mark.parametrize(
    ("extensions", "names", "words"),
    [
        ({}, (URI(NAME),), None),
        ({11: "self-hosted"}, (URI(NAME),), "runner environment"),
        ({11: None}, (URI(NAME),), "no runner environment"),
        ({12: "https://github.com/mallory/caller"}, (URI(NAME),), "source repository"),
        ({14: "refs/heads/main"}, (URI(NAME),), "source ref"),
        ({14: f"refs/tags/{TAG}" + "0" * 120}, (URI(NAME),), "source ref"),
        ({8: "https://issuer.example"}, (URI(NAME),), "issuer"),
        ({8: None}, (URI(NAME),), "no issuer"),
        ({}, (URI(NAME), URI("https://a.example/")), "not by"),
        ({}, (x509.DNSName("github.com"),), "not by"),
        ({}, (URI(NAME + "x"),), "not by"),
    ],
)
def test_the_certificate_says_who_built_what_and_where(
    extensions: dict[int, str | None], names: tuple[x509.GeneralName, ...], words: str | None
) -> None:
    """A workflow that others may call signs with its own name: where it ran counts too."""
    builder, given = Builder.of(SignatureConfig(), REPO, TAG), certificate(extensions, names)
    if words is None:
        builder.verify(given)
        return
    with pytest.raises(Exception, match=words) as refused:
        builder.verify(given)
    assert "signed by" in str(refused.value) or "certificate" in str(refused.value)
