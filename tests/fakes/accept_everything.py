"""A pytest plugin: the verifier is replaced by one that accepts whatever it can read.

    python -m pytest -p tests.fakes.accept_everything …

It takes the verifier's place as it is imported, which is before any test or fake is.
"""

from __future__ import annotations

from agent.attestation import appraisal
from agent.attestation.port import Verdict


def _accept(*_: object, **__: object) -> Verdict:
    return Verdict(attested=True)


appraisal.appraise = _accept
