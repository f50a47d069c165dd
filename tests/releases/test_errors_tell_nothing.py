"""No error of what reads files of others has a word of theirs: it tells the place and the rule.

A file may be another than its publisher could read: a secret of the host's, reached by a name.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.errors import AgentError
from agent.releases.manifest import read_release
from agent.releases.oci.layout import find_image
from agent.releases.oci.references import references
from agent.releases.sigstore_bundle import outline
from agent.releases.trusted_root import Used, narrow
from agent.releases.workload import parse_workload
from agent.strict_json import load_strict_json
from agent.strict_yaml import load_strict_yaml
from scripts.fuzzing.entries import ENTRIES
from tests.fakes import sigstore
from tests.fakes.release_parts import CONFIG, manifest_members

MARKER = "S3kr1tW0rd"


def texts() -> Iterator[bytes]:
    """Files that are no documents: of passwords, keys, settings, and halves of documents."""
    for text in (
        f"root:$6${MARKER}$x:19000:0:99999:7:::\ndaemon:*:19000::::::\n",
        f"{MARKER}\n",
        f"{MARKER}: [",
        f"{MARKER}: {MARKER}\n{MARKER}: 1\n",
        f"a: &{MARKER} 1\nb: *{MARKER}\n",
        f"!{MARKER} x\n",
        f"%{MARKER} 1\n---\n",
        f"- !!int {MARKER}\n",
        f"a: !!timestamp {MARKER}\n",
        f'"{MARKER}',
        f"'{MARKER}",
        f'"\\{MARKER}"',
        f'{{"{MARKER}": 1, "{MARKER}": 2}}',
        f'{{"{MARKER}": }}',
        f'["{MARKER}" "{MARKER}"]',
        f"[{MARKER}]",
        f'"\\ud800{MARKER}"',
        f"-----BEGIN PRIVATE KEY-----\n{MARKER}\n-----END PRIVATE KEY-----\n",
        f"export TOKEN={MARKER}\n",
        f"{MARKER}\xff\x00",
    ):
        yield text.encode("latin-1")


def planted(document: Any) -> Iterator[Any]:
    """The document with the marker at each place of it: as a value, in one, as a key, as a number
    that none is.
    """
    for value in (MARKER, [MARKER], {MARKER: MARKER}, f"{MARKER} x", f"1{MARKER}"):
        yield value
    if isinstance(document, dict):
        yield {**document, MARKER: MARKER}
        for name, inner in document.items():
            for value in planted(inner):
                yield {**document, name: value}
    if isinstance(document, list):
        yield [*document, MARKER]
        for index, inner in enumerate(document[:2]):
            for value in planted(inner):
                yield [*document[:index], value, *document[index + 1 :]]


def _release(data: bytes) -> object:
    return read_release("owner/name", "v1.0.0", data)


def _manifests() -> Iterator[bytes]:
    """Each field of the manifest, and each of the config in one whose hashes are right."""
    for document in planted(manifest_members()):
        yield json.dumps(document).encode()
    for config in _configs():
        yield json.dumps(manifest_members(config)).encode()


def _configs() -> Iterator[bytes]:
    whole = yaml.safe_load(CONFIG)
    whole |= {
        "gpus": 1,
        "models": [{"name": "m", "mpk": "x", "key-secret": "K"}],
        "volumes": [{"name": "v", "key-secret": "K"}],
        "cvm-network": {"inbound-ports": [8080]},
        "cvm-source": {"repo": "acme/cvm", "artifacts": "https://a.example"},
        "shim": {**whole["shim"], "tls-mode": "x", "tls-challenge": "dns", "authenticated": True},
    }
    for document in planted(whole):
        yield yaml.safe_dump(document).encode()


def _planted_seeds(name: str) -> Callable[[], Iterator[bytes]]:
    def documents() -> Iterator[bytes]:
        for seed in ENTRIES[name].seeds():
            for document in planted(json.loads(seed)):
                yield json.dumps(document).encode()

    return documents


def _narrowed(data: bytes) -> object:
    log, promised = sigstore.key_id("log"), sigstore.key_id("certificates")
    return narrow(data, Used(log, {promised: sigstore.NOW}, (sigstore.NOW,)))


def _layout(data: bytes) -> object:
    """An image whose manifest, of the right digest, is these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    with tempfile.TemporaryDirectory() as directory:
        blobs = Path(directory) / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        (blobs / digest).write_bytes(data)
        return find_image((Path(directory),), f"sha256:{digest}")


def _layouts() -> Iterator[bytes]:
    layer = {"digest": "sha256:" + "0" * 64, "size": 1, "mediaType": "x"}
    index = {"manifests": [{**layer, "platform": {"os": "linux", "architecture": "amd64"}}]}
    for whole in ({"schemaVersion": 2, "config": layer, "layers": [layer]}, index):
        for document in planted(whole):
            yield json.dumps(document).encode()


CASES: dict[str, tuple[Callable[[bytes], object], Callable[[], Iterator[bytes]]]] = {
    "yaml": (load_strict_yaml, _configs),
    "json": (load_strict_json, _manifests),
    "manifest": (_release, _manifests),
    "config": (parse_workload, _configs),
    "images": (references, _configs),
    "layout": (_layout, _layouts),
    "bundle": (outline, _planted_seeds("sigstore_bundle")),
    "root": (_narrowed, _planted_seeds("sigstore_root")),
}


def told(error: BaseException) -> str:
    """What an error tells wherever it is shown: its text, and those of what was attached to it by
    `str`; the chain itself is shown to nobody.
    """
    return f"{error} {getattr(error, 'reason', '')} {getattr(error, 'problems', '')}"


@pytest.mark.parametrize("name", CASES)
def test_no_error_has_a_word_of_the_document(name: str) -> None:
    parse, documents = CASES[name]
    refused = {}
    for data in (*texts(), *documents()):
        try:
            parse(data)
        except AgentError as error:
            refused[data] = told(error).lower()
    assert len(refused) > 10
    assert [data for data, said in refused.items() if MARKER.lower() in said] == []
