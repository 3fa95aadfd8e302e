"""nfsd: the state that the calls of all protocol versions share, and the programs to register."""

from __future__ import annotations

from typing import Final

from appliance.clock import Clock
from appliance.exports import ExportsFile
from appliance.nfsd.callers import Callers
from appliance.nfsd.v3.procedures import nfs3
from appliance.nfsd.v3.wcc import Flights
from appliance.oncrpc.program import Program
from appliance.vfs.tree import Tree

WRITE_VERIFIER_BYTES: Final = 8


class Nfsd:
    """The file service.

    `write_verifier`: bytes that no start before this one has had. A client that sees other ones
    writes again what it has written UNSTABLE, since a crash may have lost it.
    """

    programs: Final[tuple[Program, ...]] = (nfs3,)

    def __init__(
        self, tree: Tree, exports: ExportsFile, clock: Clock, *, write_verifier: bytes
    ) -> None:
        assert len(write_verifier) == WRITE_VERIFIER_BYTES
        self.callers: Final = Callers(tree, exports, clock)
        self.flights: Final = Flights(list)
        self.write_verifier = write_verifier

    def renew_write_verifier(self) -> None:
        """Data that clients have written may have been lost without a restart: right after a file
        system went back to a snapshot, or a device has failed."""
        following = int.from_bytes(self.write_verifier, "big") + 1
        self.write_verifier = following.to_bytes(WRITE_VERIFIER_BYTES + 1, "big")[1:]

    def rolled_back(self) -> None:
        """A file system went back to a snapshot: what is remembered of its files is not true, nor
        what a WRITE that is under way has seen before."""
        self.renew_write_verifier()
        self.callers.forget_nodes()
        for flights in tuple(self.flights.values()):  # it may be any
            for flight in tuple(flights):
                flight.disturbed = True
