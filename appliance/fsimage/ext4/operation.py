"""One change of the file system: everything that belongs to it, or nothing.

An Operation works on copies. It sees what is published, and what it has changed itself; nobody else
sees that. When it ends well, its blocks get their checksums, and they are published all at once,
with its inodes and the descriptors of groups, which are put into their blocks later; blocks of
directories get their checksums then (finishing.py). When it raises, it is forgotten, and nothing
has happened: there is no code anywhere that takes half an operation back.

What is published is never changed. So a reader needs no copy, and a commit takes references.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from appliance.fsimage.ext4 import finishing
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.inode import Inode, Now
from appliance.fsimage.ext4.layout import ext4_inode
from appliance.fsimage.ext4.volume import LateSeal, Volume

if TYPE_CHECKING:
    from appliance.fsimage.ext4.allocator import Allocator, GroupChange
    from appliance.fsimage.ext4.directory_changes import DirectoryChange
    from appliance.fsimage.ext4.free_space import HeldBlocks

Seal = Callable[[bytearray], None]
"""Puts its checksum into a block that is complete."""


def no_seal(block: bytearray) -> None:
    """The seal of a block that has no checksum of its own."""


Known = Callable[[int], Inode | None]
"""Gives an inode as it is published, if somebody has it at hand."""


def nothing_known(number: int) -> Inode | None:
    """The Known where nobody keeps inodes."""
    return None


class Operation:
    """One change. Made by Writer.change, under the lock of the file system.

    `now_ns`: the instant of the operation, for every time that it sets.
    """

    __slots__ = (
        "_allocator",
        "_changed",
        "_inodes",
        "_known",
        "_late_seals",
        "_now",
        "_seals",
        "_then",
        "directories",
        "forgotten",
        "free_blocks_change",
        "free_inodes_change",
        "freed",
        "groups",
        "last_orphan",
        "new_numbers",
        "now_ns",
        "tables",
        "taken",
        "volume",
    )

    def __init__(
        self, volume: Volume, allocator: Allocator, now_ns: int, known: Known = nothing_known
    ) -> None:
        self.volume: Final = volume
        self.now_ns: Final = now_ns
        self._now: Final = Now(now_ns)
        self._allocator: Final = allocator
        self._known: Final = known
        self._changed: dict[int, bytearray] = {}
        self._seals: dict[int, Seal] = {}
        self._late_seals: dict[int, LateSeal] = {}
        self._inodes: dict[int, Inode] = {}
        self._then: list[Callable[[], None]] = []
        self.directories: dict[int, DirectoryChange] = {}
        """Directories as this operation sees them, by their numbers."""
        self.freed: list[tuple[int, int]] = []
        """Blocks (first, count) that may be used again when this is durable."""
        self.forgotten: list[tuple[int, int]] = []
        """Those of them that may be in the journal, and must not be replayed."""
        self.free_blocks_change = 0
        self.free_inodes_change = 0
        self.last_orphan: int | None = None
        """What s_last_orphan becomes, if it changes."""
        self.groups: dict[int, GroupChange] = {}
        """The descriptors that it changes, by their groups."""
        self.taken: list[tuple[HeldBlocks, int, int]] = []
        """Blocks that it has allocated: group, first bit, and how many."""
        self.new_numbers: list[tuple[int, int]] = []
        """Inodes that it has allocated: group, and number in it."""
        allocator.begin()
        self.tables: set[int] = set()
        """The blocks into which its inodes and descriptors will be put."""

    # Blocks.

    def block(self, number: int) -> bytes | bytearray:
        """A metadata block as this operation sees it. Not to be written into."""
        changed = self._changed.get(number)
        return self.volume.block(number) if changed is None else changed

    def has_changed(self, number: int) -> bool:
        """Whether this operation has its own copy of the block."""
        return number in self._changed

    def change(
        self, number: int, seal: Seal = no_seal, *, late: LateSeal | None = None
    ) -> bytearray:
        """This operation's copy of a metadata block, to write into. `seal` is called once, when the
        operation ends well; of several for one block, the last. `late` is for a block that the next
        operations will change, too: it is called when the transaction is closed."""
        block = self._changed.get(number)
        if block is None:
            block = self._changed[number] = bytearray(self.volume.block(number))
        if late is not None:
            self._late_seals[number] = late
        elif seal is not no_seal:
            self._seals[number] = seal
            self._late_seals.pop(number, None)
        return block

    def new_block(
        self, number: int, seal: Seal = no_seal, *, late: LateSeal | None = None
    ) -> bytearray:
        """The same for a block that has just become one of metadata: zeros."""
        self._changed[number] = bytearray(self.volume.block_bytes)
        return self.change(number, seal, late=late)

    def allocate(self, goal: int, count: int) -> tuple[int, int]:
        """Blocks that nobody has: the first, and how many (1 to `count`, without a gap), near
        `goal`. NOSPC."""
        return self._allocator.allocate(self, goal, count)

    def goal_of(self, inode: int) -> int:
        """Where the blocks of an inode should be, as long as it has none."""
        return self._allocator.goal_of(inode)

    def free(self, first: int, count: int, *, metadata: bool = False) -> None:
        """Give blocks back. `metadata`: what was in them went through the journal."""
        self._allocator.free(self, first, count)
        self.freed.append((first, count))
        if metadata:
            self.forgotten.append((first, count))
            for number in range(first, first + count):
                self._changed.pop(number, None)
                self._seals.pop(number, None)
                self._late_seals.pop(number, None)

    # Inodes.

    def inode(self, number: int) -> Inode:
        """This operation's copy of an inode, to be changed; the same one each time."""
        inode = self._inodes.get(number)
        if inode is None:
            known = self._known(number) or inodes.read_any(self.volume, number, unlinked=True)
            inode = self._inodes[number] = known.copy()
        return inode

    def new_inode(self, number: int, disk: ext4_inode, body: bytes) -> Inode:
        """The inode that `number`, which was just allocated, becomes; now all its times are."""
        place = self.volume.inode_location(number)
        inode = self._inodes[number] = Inode(number, disk, body, 0, place)
        inodes.begin(inode, self._now)
        return inode

    def allocate_inode(self, parent: int, *, directory: bool) -> int:
        """A number that no inode has, near that of `parent`. NOSPC."""
        return self._allocator.allocate_inode(self, parent, directory=directory)

    def free_inode(self, number: int, *, directory: bool) -> None:
        """Give the number of an inode back; the inode itself says that it is gone."""
        self._allocator.free_inode(self, number, directory=directory)

    def touched(self, inode: Inode) -> None:
        """Something about `inode` changes: its ctime and its version go up."""
        inodes.touch(inode, self._now)

    def modified(self, inode: Inode) -> None:
        """Its content changes: the mtime as well."""
        inodes.modify(inode, self._now)

    # The end.

    def then(self, callback: Callable[[], None]) -> None:
        """Call this when the operation is published. It must not fail: it brings caches up to
        date."""
        self._then.append(callback)

    def finish(self) -> dict[int, bytes]:
        """All changed blocks, complete but for what is put into `tables` later."""
        place, tables = self.volume.descriptor_place, self.tables
        for index in self.groups:
            tables.add(place(index)[0])
        for inode in self._inodes.values():
            tables.add(inode.place[0])
        for number in tables.difference(self.volume.unfinished.tables):
            self.volume.block(number)  # so that it is known: to publish must not fail
        changed = self._changed
        for number, seal in self._seals.items():
            seal(changed[number])
        return {number: bytes(block) for number, block in changed.items()}

    def announce(self) -> None:
        """Its blocks are about to be published: which of them have no checksum yet?"""
        seals = self.volume.unfinished.seals
        for number in self._seals:
            seals.pop(number, None)
        seals.update(self._late_seals)

    def publish(self) -> list[Inode]:
        """Its blocks are published: so are its inodes now, which are returned, and descriptors."""
        finishing.add(self.volume, self._inodes, self.groups, self.tables)
        if self.freed:
            self._allocator.freed(self.freed)
        for callback in self._then:
            callback()
        self.forget()
        return list(self._inodes.values())

    def forget(self) -> None:
        """It is over: let go of what refers back to it, so that its copies of blocks go with it
        and need not wait for the collector of cycles."""
        self.directories.clear()
