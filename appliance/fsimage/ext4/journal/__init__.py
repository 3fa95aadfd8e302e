"""The journal of a file system (JBD2).

ring.py        the blocks of the journal, and what is in them
recovery.py    what a crash left in it, replayed
log.py         transactions into the ring, and from there to their places
committer.py   operations into transactions; who waits for which; group commit
"""

from appliance.fsimage.ext4.journal.recovery import (
    recover,
    recover_in_place,
    replay_into,
    ring_of,
)
from appliance.fsimage.ext4.journal.ring import Ring

__all__ = ["Ring", "recover", "recover_in_place", "replay_into", "ring_of"]
