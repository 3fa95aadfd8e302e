"""A list of buffers, handed out piece by piece without copying."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.vfs.interface import Buffer


class Cutter:
    """Cuts what is in `buffers`, from the start: the views share their memory."""

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self._left = [memoryview(buffer) for buffer in reversed(buffers)]

    def take(self, count: int) -> list[memoryview]:
        """The next `count` bytes; there are so many."""
        taken = []
        while count:
            view = self._left.pop()
            if len(view) > count:
                self._left.append(view[count:])
                view = view[:count]
            if view:
                taken.append(view)
            count -= len(view)
        return taken
