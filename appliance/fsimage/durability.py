"""What "durable" means: what has to fail before something that was acknowledged may be lost.

In every mode the same is written in the same order. The modes differ in when it is written, and in
whether the host is asked to bring it to the disk.
"""

from __future__ import annotations

from enum import Enum


class Durability(Enum):
    """`--sync`. The value is the word for it."""

    FULL = "full"
    """Nothing acknowledged is lost when the host loses power: before anybody is told that a change
    is durable, its transaction is in the journal and the host has brought it to the disk."""

    PROCESS = "process"
    """Nothing acknowledged is lost when the process is killed: the host has been given everything,
    in its order, but keeps it in memory for as long as it likes. If the host goes down, changes
    are lost, and as the disk need not keep the order, the image may be damaged. For servers that
    live as long as a test: a commit costs a tenth or less."""

    LAZY = "lazy"
    """Changes, and COMMIT, are acknowledged at once and become durable, as with FULL, a few seconds
    later. Whatever goes down, the image is sound, and a few seconds old. What knfsd calls
    `async`."""
