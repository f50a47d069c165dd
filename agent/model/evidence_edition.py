"""Which edition of the evidence policy's defaults something was admitted under.

A default that becomes stricter judges what is admitted from then on. What was admitted before goes
on being judged by the defaults of its own edition, and is told as a problem. 1: any signer, no
floors, keys of anybody, no revocation list asked for, devices' measurements not compared with
reference manifests. 2: what the configuration's defaults say.
"""

FIRST_EVIDENCE_EDITION = 1  # of rows of before, which do not say theirs
EVIDENCE_EDITION = 2
