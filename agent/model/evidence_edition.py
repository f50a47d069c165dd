"""Which edition of the evidence policy's defaults something was admitted under.

A default that becomes stricter judges what is admitted from then on. What was admitted before goes
on being judged by the defaults of its own edition, and is told as a problem. 1: any signer, no
floors, keys of anybody, no revocation list asked for, devices' measurements not compared with
reference manifests. 2: what the configuration's defaults say, and neither machine nor board is
asked for. 3: evidence is of this machine's own processor, and GPUs are in the mode and on the
board that they should be.
"""

FIRST_EVIDENCE_EDITION = 1  # of rows of before, which do not say theirs
FLOORS_EDITION = 2
MACHINES_EDITION = 3
EVIDENCE_EDITION = MACHINES_EDITION


def knows_machines(edition: int) -> bool:
    """Whether machine and board are asked for."""
    return edition >= MACHINES_EDITION
