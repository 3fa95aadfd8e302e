"""Weak cache consistency (RFC 1813 section 2.6): attributes from before and after a change.

A client compares what it has cached with "before". If both are equal, nobody else has changed the
file, and what it has cached goes on with "after". So the two must have nothing but this change
between them, and where that cannot be promised, "before" has to be left out.

Change      holds the lock of the file system from before to after. Then, with a "sync" export, the
            nodes are made durable: outside the lock, before the reply, which is held meanwhile.
            Of a node that a WRITE is moving data into, "before" is left out: some may come now.
WriteChange is for WRITE, whose data moves without the lock. Other changes that come in between
            mark it, and its "before" is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import TracebackType
from typing import Self

from appliance.nfsd.v3.attributes import NO_WCC, post_op, wcc
from appliance.oncrpc.xdr import Encoded
from appliance.vfs.interface import Node, Ticket


class Flight:
    """A WRITE between its attributes before and after."""

    __slots__ = ("disturbed", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.disturbed = False

    def is_to(self, node: Node) -> bool:
        """Whether its data goes to `node`, which is of the same file system."""
        return self.node is node or self.node.handle == node.handle


Flights = defaultdict[int, list[Flight]]
"""The WRITEs in progress, by fsid. A list is touched with the lock of its file system held."""


Sync = Callable[[], Ticket | None]
"""What begins to make something durable."""


class Change:
    """One step: `with` it the attributes of `nodes` are taken before and after.

    `promise` is called with what makes each of them durable; None: nobody waits for that."""

    __slots__ = ("_durable", "_flights", "_nodes", "_promise", "before", "wccs")

    def __init__(
        self, flights: Flights, nodes: tuple[Node, ...], promise: Callable[[Sync], None] | None
    ) -> None:
        self._flights = flights
        self._nodes = nodes
        self._durable = list(nodes)
        self._promise = promise
        self.before: Encoded = b""
        """The attributes of the first node; empty if it has none."""
        self.wccs: list[Encoded] = [NO_WCC] * len(nodes)
        """The wcc_data of each node; tells nothing before the end."""

    @property
    def wcc(self) -> Encoded:
        """The wcc_data of the only node."""
        return self.wccs[0]

    def also(self, node: Node) -> Node:
        """`node` has been made or changed in this step, too, and shall be durable with it."""
        self._durable.insert(0, node)
        return node

    def __enter__(self) -> Self:
        filesystem = self._nodes[0].filesystem
        filesystem.lock.acquire()
        try:
            flying = self._flights.get(filesystem.fsid, ())
            for flight in flying:
                flight.disturbed = True
            # Across two file systems nothing is ever changed: a "before" would tell nothing.
            self.wccs = [
                (post_op(node) if node.filesystem is filesystem else None) or b""
                for node in self._nodes
            ]
        except BaseException:
            filesystem.lock.release()
            raise
        self.before = self.wccs[0]
        if flying:
            self.wccs = [
                b"" if any(flight.is_to(node) for flight in flying) else before
                for node, before in zip(self._nodes, self.wccs, strict=True)
            ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        try:
            self.wccs = [
                wcc(before, post_op(node))
                for node, before in zip(self._nodes, self.wccs, strict=True)
            ]
        finally:
            self._nodes[0].filesystem.lock.release()
        promise, self._promise = self._promise, None  # which knows the call, which knows us
        if error is None and promise is not None:
            for node in self._durable:
                promise(node.sync)


class WriteChange:
    """The step of a WRITE: `with` it the attributes of `node` are taken before and after."""

    __slots__ = ("_before", "_flight", "_flights", "_node", "wcc")

    def __init__(self, flights: Flights, node: Node) -> None:
        self._node = node
        self._flights = flights
        self._flight = Flight(node)
        self._before: Encoded | None = None
        self.wcc = NO_WCC

    def __enter__(self) -> Self:
        node = self._node
        with node.filesystem.lock:
            flying = self._flights[node.filesystem.fsid]
            for other in flying:
                if other.is_to(node):
                    other.disturbed = self._flight.disturbed = True
            flying.append(self._flight)
            self._before = post_op(node)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        node = self._node
        with node.filesystem.lock:
            self._flights[node.filesystem.fsid].remove(self._flight)
            before = None if self._flight.disturbed else self._before
            self.wcc = wcc(before, post_op(node))
