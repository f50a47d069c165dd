"""What a config says of its guest's boot: read where it concerns the host, else let be."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from agent.releases.fields import ReleaseFieldError
from agent.releases.workload import Workload, parse_workload

PACK = "ab" * 32 + "_62578688000_27fb23ac-db9b-5e25-991a-90fdf2c9b3a7"


def parse(**members: Any) -> Workload:
    config = {"cvm-version": "0.12.0", "cpus": 1, "memory": 256, **members}
    return parse_workload(yaml.safe_dump(config).encode())


@pytest.mark.parametrize("mode", ["http", "tls"])
def test_a_certificate_that_is_proved_at_the_public_address_is_known(mode: str) -> None:
    assert parse(shim={"tls-challenge": mode}).tls_challenge == mode


@pytest.mark.parametrize("shim", [None, {}, {"tls-challenge": "dns"}, {"tls-challenge": 7}])
def test_one_that_is_proved_elsewhere_is_none(shim: object) -> None:
    assert parse(shim=shim).tls_challenge == ""


@pytest.mark.parametrize("name", ["vault-url", "kbs-url", "keyserver-url"])
def test_a_keeper_of_secrets_is_known_by_every_name_that_it_had(name: str) -> None:
    assert parse(**{name: "https://keeper.example"}).fetches_secrets
    assert not parse(**{name: ""}).fetches_secrets
    assert not parse(**{name: {}}).fetches_secrets
    assert not parse().fetches_secrets


def test_the_keys_of_model_packs_and_of_volumes_are_secrets_that_must_be_supplied() -> None:
    found = parse(
        models=[{"emwp": PACK, "key-secret": "MODEL_KEY"}],
        volumes=[{"name": "data", "key-secret": "DATA_KEY"}, {"name": "scratch"}],
    )
    assert found.secret_names == ("MODEL_KEY", "DATA_KEY")
    with pytest.raises(ReleaseFieldError) as refused:
        parse(volumes=[{"name": "data", "key-secret": "no name"}])
    assert refused.value.path == "volumes[0].key-secret"


def test_an_image_of_another_publisher_is_told_by_its_source() -> None:
    own = {"repo": "acme/cvmimage-sandbox", "artifacts": "https://images.example/cvm"}
    assert parse(**{"cvm-source": own}).cvm_source == "acme/cvmimage-sandbox"
    assert parse(**{"cvm-source": "acme/sandbox"}).cvm_source == "acme/sandbox"
    public = {"repo": "tinfoilsh/cvmimage", "artifacts": "https://images.example/cvm"}
    assert parse(**{"cvm-source": public}).cvm_source is None
    assert parse().cvm_source is None


@pytest.mark.parametrize(
    ("source", "path"),
    [({}, "cvm-source.repo"), ({"repo": "a b"}, "cvm-source.repo"), (7, "cvm-source")],
)
def test_a_source_that_names_nobody_is_refused_with_its_path(source: object, path: str) -> None:
    with pytest.raises(ReleaseFieldError) as refused:
        parse(**{"cvm-source": source})
    assert refused.value.path == path


def test_names_of_newer_images_are_tolerated_wherever_they_stand() -> None:
    found = parse(
        **{
            "attested-keys": [{"id": "host-ssh", "key": "ed25519"}],
            "models": [{"mpk": PACK, "schema": 2}],
            "volumes": [{"name": "data", "exec": True, "owner": 1000, "overlays": ["/opt"]}],
            "containers": [
                {
                    "name": "web",
                    "ports": ["22:22"],
                    "keys": ["host-ssh"],
                    "attestation": True,
                    "cvm_admin": True,
                }
            ],
        }
    )
    assert (found.volumes, found.container_names) == (("data",), ("web",))


def test_a_guest_that_is_told_to_give_no_evidence_is_known() -> None:
    assert parse(shim={"dummy-attestation": True}).dummy_attestation
    assert not parse(shim={"dummy-attestation": False}).dummy_attestation
    assert not parse().dummy_attestation
