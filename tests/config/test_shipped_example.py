"""The example that is shipped is a configuration, and says the defaults truly."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.config import Config
from agent.config_file import load_config

EXAMPLE = Path(__file__).parents[2] / "docs" / "agent.example.yaml"
SAID_OTHERWISE = {"tee", "allow_unattested", "releases.source"}


def _flat(value: object, path: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {path: value}
    flat: dict[str, object] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{path}.{key}" if path else key)
    return flat


def test_the_shipped_example_parses_and_shows_the_defaults() -> None:
    shown = _flat(msgspec.to_builtins(load_config(EXAMPLE, {}), enc_hook=str))
    defaults = _flat(msgspec.to_builtins(Config(), enc_hook=str))
    for path, value in defaults.items():
        if path not in SAID_OTHERWISE and value is not None:
            assert shown[path] == value, path
