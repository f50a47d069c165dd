"""Manners of the public guest that the agent does not yet live with.

The guests of the story, of the bench and of the tests' releases do without those that stand here;
the reference guest itself has all of them (tests/guest/README.md).
"""

AGENT_LACKS: dict[str, str] = {
    "GUEST_EARLY_443": "0",
    "GUEST_SHIM_RESTART_S": "0",
    "GUEST_NEEDS_DOMAIN": "0",
}
