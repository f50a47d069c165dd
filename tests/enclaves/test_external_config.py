from __future__ import annotations

import dataclasses

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.enclaves.external_config import ExternalConfig, Metadata, render
from agent.enclaves.network import GuestAddress
from agent.enclaves.spec import SpecError

METADATA = Metadata(
    id="abcd2345",
    domain="api.example.org",
    image="v0.11.0",
    cpu="none",
    gpu="none",
    repo="acme/hello",
    tag="v1.0.0",
    digest="ab" * 32,
)
CONFIG = ExternalConfig(
    env={"COLOUR": "red"},
    secrets={"API_KEY": "s3cret"},
    metadata=METADATA,
    network=GuestAddress("10.215.0.2/24", "10.215.0.1"),
)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True)


def test_the_document_has_the_members_of_the_contract() -> None:
    assert yaml.safe_load(render(CONFIG)) == {
        "env": {"COLOUR": "red"},
        "secrets": {"API_KEY": "s3cret"},
        "metadata": dataclasses.asdict(METADATA),
        "network": {"address": "10.215.0.2/24", "gateway": "10.215.0.1"},
    }


@given(st.dictionaries(names, text), st.dictionaries(names, text), text)
def test_every_value_comes_out_as_it_went_in(
    env: dict[str, str], secrets: dict[str, str], domain: str
) -> None:
    config = dataclasses.replace(
        CONFIG, env=env, secrets=secrets, metadata=dataclasses.replace(METADATA, domain=domain)
    )
    read = yaml.safe_load(render(config))
    assert (read["env"], read["secrets"], read["metadata"]["domain"]) == (env, secrets, domain)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "no",
        "null",
        "~",
        "1e3",
        "0x1f",
        "2026-01-01",
        "a: b\nsecrets: {X: y}",
        "*alias",
        "&anchor x",
        "!!python/object x",
        "--- doc",
        "\t\r\n ",
        "\x00\x07\x1b\x7f\x85\xa0\u2028\ufeff",
        "\U0001f600",
        "'\"\\",
        "# comment",
        "x" * 5000,
    ],
)
def test_a_value_that_looks_like_yaml_stays_text(value: str) -> None:
    config = dataclasses.replace(CONFIG, env={"V": value}, secrets={"S": value})
    for loader in (yaml.SafeLoader, yaml.CSafeLoader):
        read = yaml.load(render(config), loader)
        assert (read["env"], read["secrets"]) == ({"V": value}, {"S": value})


def test_the_order_in_which_variables_came_does_not_show() -> None:
    one = dataclasses.replace(CONFIG, env={"A": "1", "B": "2"})
    other = dataclasses.replace(CONFIG, env={"B": "2", "A": "1"})
    assert render(one) == render(other)


def test_text_that_is_not_unicode_is_refused_without_being_quoted() -> None:
    config = dataclasses.replace(CONFIG, secrets={"API_KEY": "hush\ud800"})
    with pytest.raises(SpecError, match="secret 'API_KEY' is not Unicode") as caught:
        render(config)
    assert "hush" not in str(caught.value)


def test_the_repr_shows_no_secret() -> None:
    assert "s3cret" not in repr(CONFIG)
