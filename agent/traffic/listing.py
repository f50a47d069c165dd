"""What another program prints is read as it is known to be, or told as not understood. Pure.

A listing of another form (a newer program, a hand in our table) must neither be believed by halves
nor end whoever asked with an error that nobody expects.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from agent.traffic.port import TrafficError

_OF_ANOTHER_FORM = (
    KeyError,
    IndexError,
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
    StopIteration,  # of what must have one member and has none
)


@contextlib.contextmanager
def understood(program: str) -> Iterator[None]:
    """Raises TrafficError for what in the body is not as it is known to be."""
    try:
        yield
    except _OF_ANOTHER_FORM as error:
        raise TrafficError(f"{program} printed what is not understood") from error
