"""One thing that is wrong with a config, and where."""

from __future__ import annotations

from dataclasses import dataclass

from agent.releases.fields import Field


@dataclass(frozen=True, slots=True)
class Finding:
    """`sure`: the guest refuses it, or it is nothing that anybody meant; else it is only odd."""

    path: str
    text: str
    sure: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


def refused(field: Field, text: str) -> Finding:
    """The guest refuses the field."""
    return Finding(field.path, text)


def odd(field: Field, text: str) -> Finding:
    """The guest takes the field, but hardly as it is meant."""
    return Finding(field.path, text, sure=False)
