"""A bounded memory of things that are costly to get.

Two generations instead of a list in order of use: new things go into the young generation; when
that has half of what is allowed it becomes the old one, and what was old is forgotten. What is used
while it is old becomes young again. So a thing stays at least until half the limit was used after
its last use, and a hit costs one look into a dictionary: no lock, no reordering.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps values until their weights exceed `weight_max`. No value is None."""

    __slots__ = ("_lock", "_old", "_weigh", "_weight", "_weight_max", "_young")

    def __init__(self, weight_max: int, weigh: Callable[[V], int] = lambda _: 1) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._weight = 0  # of the young
        self._weight_max: Final = weight_max // 2  # of one generation
        self._weigh: Final = weigh
        self._lock: Final = threading.Lock()

    def get(self, key: K) -> V | None:
        """What was put there, if it is still known."""
        value = self._young.get(key)
        if value is None and self._old:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember `value`, instead of what was there."""
        weight = self._weigh(value)
        with self._lock:
            if self._weight + weight > self._weight_max:
                self._old, self._young, self._weight = self._young, {}, 0
            before = self._young.get(key)
            if before is not None:
                self._weight -= self._weigh(before)
            self._young[key] = value
            self._weight += weight

    def forget(self, key: K) -> None:
        """Remember nothing there."""
        with self._lock:
            before = self._young.pop(key, None)
            if before is not None:
                self._weight -= self._weigh(before)
            self._old.pop(key, None)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
