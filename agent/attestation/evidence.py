"""What evidence ends with when it cannot be believed."""

from __future__ import annotations

from agent.errors import AgentError


class EvidenceError(AgentError):
    """Evidence that is malformed, or whose signatures or chain do not hold.

    `code` is stable and machine-readable; the text says which field and why.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self._code = code

    @property
    def code(self) -> str:
        return self._code
