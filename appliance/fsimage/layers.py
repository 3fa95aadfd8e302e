"""Changed blocks in memory, and earlier states of them.

A state is a tuple of layers, the newest first; a layer is a dictionary from block numbers to
immutable bytes. A block is what the first layer that has it says. Only the top layer of the present
state is ever written to: so keeping a state costs one empty dictionary, and going back to it
another one.

    present  (D, B, A)      the state "one" was kept when A was the top, "two" when C was;
    one      (A)            between them somebody went back to "one"
    two      (C, A)

Two layers of which one is never seen without the other are joined, so the number of layers is
bounded by that of the states.

A reader takes a state and looks, without a lock: layers below the top do not change, and states are
replaced, not altered.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from appliance import image_limits
from appliance.fsimage.snapshots import check_new_name, unknown
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Snapshot

Layer = dict[int, bytes]
State = tuple[Layer, ...]


def block_in(state: State, number: int) -> bytes | None:
    """A block, if it was changed in this state."""
    for layer in state:
        block = layer.get(number)
        if block is not None:
            return block
    return None


def any_in(state: State, first: int, last: int) -> bool:
    """Whether any of these blocks was changed in this state."""
    numbers = range(first, last + 1)
    return not all(layer.keys().isdisjoint(numbers) for layer in state)


@dataclass(slots=True)
class _Kept:
    state: State
    changed: int
    created_ns: int


class Layers:
    """The blocks of one overlay: its present state, and those that were kept."""

    def __init__(self, block_bytes: int) -> None:
        self.present: State = ({},)
        self.lock: Final = threading.Lock()
        """Held by who changes something: a block, or the states."""
        self._block_bytes: Final = block_bytes
        self._kept: Final[dict[str, _Kept]] = {}
        self._changed = 0
        self._held = 0

    def put(self, number: int, block: bytes) -> None:
        """Change a block, with the lock held. NOSPC: there are too many already."""
        top = self.present[0]
        if number not in top:
            if (self._held + 1) * self._block_bytes > image_limits.OVERLAY_BYTES_MAX:
                raise VfsError(Code.NOSPC, "more changes than are kept in memory")
            self._held += 1
            self._changed += block_in(self.present, number) is None
        top[number] = block

    def items(self) -> Iterator[tuple[int, bytes]]:
        """Every changed block of the present state, by number."""
        present = self.present
        for number in sorted(set().union(*present)):
            block = block_in(present, number)
            assert block is not None, "it is in one of the layers"
            yield number, block

    # --- snapshots ------------------------------------------------------------------------

    def create(self, name: str, created_ns: int) -> None:
        with self.lock:
            check_new_name(name, self.names())
            self._kept[name] = _Kept(self.present, self._changed, created_ns)
            self.present = ({}, *self.present)

    def names(self) -> list[Snapshot]:
        return [
            Snapshot(name, kept.created_ns, kept.changed * self._block_bytes)
            for name, kept in list(self._kept.items())
        ]

    def rollback(self, name: str) -> None:
        with self.lock:
            kept = self._find(name)
            self.present = ({}, *kept.state)
            self._changed = kept.changed
            self._tidy_up()

    def delete(self, name: str) -> None:
        with self.lock:
            self._find(name)
            del self._kept[name]
            self._tidy_up()

    def _find(self, name: str) -> _Kept:
        kept = self._kept.get(name)
        if kept is None:
            raise unknown(name, self.names())
        return kept

    def _tidy_up(self) -> None:
        """Join what nobody needs apart, and count what is held."""
        while pair := self._pair_to_join():
            self._join(*pair)
        layers = {id(layer): layer for state in self._states() for layer in state}
        self._held = sum(map(len, layers.values()))

    def _states(self) -> Iterable[State]:
        yield self.present
        for kept in self._kept.values():
            yield kept.state

    def _pair_to_join(self) -> tuple[Layer, Layer] | None:
        """A layer, and the one below it, if every state that has the lower one has both."""
        above: dict[int, list[Layer | None]] = {}
        layers: dict[int, Layer] = {}
        for state in self._states():
            upper: Layer | None = None
            for layer in state:
                known = above.setdefault(id(layer), [])
                if not any(each is upper for each in known):
                    known.append(upper)
                layers[id(layer)] = layer
                upper = layer
        for number, uppers in above.items():
            if len(uppers) == 1 and uppers[0] is not None:
                return uppers[0], layers[number]
        return None

    def _join(self, upper: Layer, lower: Layer) -> None:
        joined = {**lower, **upper}

        def without_them(state: State) -> State:
            return tuple(
                joined if layer is upper else layer for layer in state if layer is not lower
            )

        self.present = without_them(self.present)
        for kept in self._kept.values():
            kept.state = without_them(kept.state)
