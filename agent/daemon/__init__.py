"""The composition root: builds the parts, joins them, runs them until told to stop.

Order at start: lock, store, choices, parts, API (which answers `starting`), adoption and
reconciliation, READY=1. At the end the surfaces close first and the store last; VMs and the data
plane go on.
"""

from agent.daemon.run import main

__all__ = ["main"]
