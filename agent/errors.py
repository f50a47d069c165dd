"""The root of every error of ours, and how a chain of them is told to a person."""

from __future__ import annotations


class AgentError(Exception):
    """The root. Each package defines its own beside what raises them."""

    @property
    def code(self) -> str:
        """A stable snake_case word for machines; a class may override it."""
        return "internal"


def describe(error: BaseException) -> str:
    """Tell an error and what caused it, outermost first, each sentence once."""
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen) or type(seen).__name__
        if not parts or text not in parts[-1]:
            parts.append(text)
        seen = seen.__cause__
    return ": ".join(parts)
