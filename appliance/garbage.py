"""The collector of reference cycles, in a process that serves for long.

Nearly all that a call makes goes when its last reference does. What the collector finds beside that
is little, and it looks through the caches for it: in a run of creates, a fifteenth of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_THRESHOLDS: Final = 50_000, 20, 100
"""Objects, by which there have become more, before the collector looks (Python: 700); how often it
looks at the youngest before it looks at the next generation, and so on (10, 10)."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """What there is now stays, and is not looked through any more; the rest, seldom."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
