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
from weakref import ref

K = TypeVar("K")
V = TypeVar("V")


class Cache(Generic[K, V]):
    """Keeps values until their weights exceed `weight_max`; without `weigh`, each weighs 1.
    No value is None."""

    __slots__ = ("_lock", "_old", "_weigh", "_weight", "_weight_max", "_young")

    def __init__(self, weight_max: int, weigh: Callable[[V], int] | None = None) -> None:
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._weight = 0  # of the young, if they are weighed
        self._weight_max: Final = weight_max // 2  # of one generation
        self._weigh: Final = weigh
        self._lock: Final = threading.RLock()

    def get(self, key: K) -> V | None:
        """What was put there, if it is still known."""
        value = self._young.get(key)
        if value is None and self._old:
            value = self._old.get(key)
            if value is not None:
                return self._make_young(key, value)
        return value

    def _make_young(self, key: K, value: V) -> V:
        """What was found to be old is used; unless somebody has just put another one there."""
        with self._lock:
            newer = self._young.get(key)
            if newer is not None:
                return newer
            if self._old.get(key) is value:
                self.put(key, value)
            return value

    def put(self, key: K, value: V) -> None:
        """Remember `value`, instead of what was there."""
        weigh = self._weigh
        if weigh is None:  # needs no lock: each step is one, and all that gets lost is memory
            if len(self._young) >= self._weight_max:
                self._grow_old()
            self._young[key] = value
            return
        with self._lock:
            weight = weigh(value)
            if self._weight + weight > self._weight_max:
                self._grow_old()
            before = self._young.get(key)
            if before is not None:
                self._weight -= weigh(before)
            self._young[key] = value
            self._weight += weight

    def _grow_old(self) -> None:
        self._old, self._young, self._weight = self._young, {}, 0

    def forget(self, key: K) -> None:
        """Remember nothing there."""
        with self._lock:
            before = self._young.pop(key, None)
            if before is not None and self._weigh is not None:
                self._weight -= self._weigh(before)
            self._old.pop(key, None)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)


_LIVING_MIN: Final = 1024
"""So few are not swept."""


class Living(Generic[K, V]):
    """Finds what somebody has, and keeps nothing alive. Used by one thread at a time.

    What a WeakValueDictionary does in a callback for each value that dies, is done here for all of
    them at once, when there are twice as many as after the last time: so a value costs a fifth.
    """

    __slots__ = ("_refs", "_sweep_at")

    def __init__(self) -> None:
        self._refs: dict[K, ref[V]] = {}
        self._sweep_at = _LIVING_MIN

    def get(self, key: K) -> V | None:
        """What has this key, if it is still there."""
        found = self._refs.get(key)
        return None if found is None else found()

    def put(self, key: K, value: V) -> None:
        """From now on this has the key."""
        self._refs[key] = ref(value)
        if len(self._refs) > self._sweep_at:
            self._refs = {key: each for key, each in self._refs.items() if each() is not None}
            self._sweep_at = max(_LIVING_MIN, 2 * len(self._refs))

    def forget(self, key: K) -> None:
        """Nothing has it."""
        self._refs.pop(key, None)

    def values(self) -> list[V]:
        """All that are there."""
        return [value for each in self._refs.values() if (value := each()) is not None]

    def __len__(self) -> int:
        return len(self._refs)
