"""The packet marks by which our table, the filters of taps and the agent's own sockets agree.

A mark lives in the kernel's memory beside a packet: nobody outside the host can set or see one.
Only the highest byte is ours; the others are left as they are for whoever else marks packets.
"""

from __future__ import annotations

MARK_MASK = 0xFF000000
FROM_GUEST = 0x6D000000  # our table is in force, and saw this packet come from a guest's tap
TO_GUEST = 0x6E000000  # our table lets this packet through to a guest, or the agent itself sent it
LET_OUT = 0x6F000000  # our table lets this packet of a guest out to other networks
