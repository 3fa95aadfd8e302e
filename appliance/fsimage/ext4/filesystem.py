"""ext2, ext3 and ext4 as a vfs.FileSystem.

A handle is the number of the inode and its generation, which is new each time a number is given to
a new file: so a handle is good for ever, and never names another file.

There is at most one Ext4Node for an inode at a time, so that what is known of it is known once.
Whoever reads metadata holds the lock; data moves outside of it.

Snapshots are states of the device at a moment between two operations, when everything before is in
the journal: to go back to one is to open the file system after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from appliance import image_limits
from appliance.clock import Clock, SystemClock
from appliance.fsimage.device import BlockDevice, snapshots_of
from appliance.fsimage.durability import Durability
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import changes, content, layout, opening, removal
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.allocator import Allocator
from appliance.fsimage.ext4.cache import Cache, Living
from appliance.fsimage.ext4.directory import Directories
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.inode import Inode
from appliance.fsimage.ext4.node import HANDLE, Ext4Node
from appliance.fsimage.ext4.opening import Terms
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.orphans import Orphans
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.fsimage.ext4.writer import Writer
from appliance.fsimage.snapshots import BlockSnapshots, unknown
from appliance.trace import log
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import (
    AboutToWait,
    FileSystem,
    FileType,
    Limits,
    Snapshot,
    Snapshots,
    Statistics,
    Ticket,
    waits_for_nobody,
)

T = TypeVar("T")

_SECOND_NS: Final = 1_000_000_000
_SMALL_FILE_BYTES_MAX: Final = (1 << 31) - 1


def open_ext4(
    device: BlockDevice,
    name: str,
    *,
    read_only: bool = False,
    durability: Durability = Durability.FULL,
    clock: Clock | None = None,
    about_to_wait: AboutToWait = waits_for_nobody,
) -> Ext4:
    """The file system on `device`; `name` is for messages. ImageError: it cannot be served.

    It is read-only if that is asked for, if the device is, or if it cannot be written without
    damage; the log then says why.
    """
    terms = Terms(read_only, durability, clock or SystemClock(), about_to_wait)
    volume, writable = opening.ready_volume(device, name, terms)
    filesystem = Ext4(volume, terms)
    if filesystem.root().attributes().type is not FileType.DIRECTORY:
        raise ImageError("the root of the file system is not a directory")
    if writable:
        try:
            filesystem.begin_writing()
        except VfsError as error:
            log.error("%s: served read-only: %s; %s", name, error.detail, opening.E2FSCK)
    return filesystem


class Ext4(FileSystem, Snapshots):
    """One file system."""

    volume: Volume
    maps: BlockMaps
    directories: Directories
    orphans: Orphans
    names: Cache[tuple[int, bytes], Ext4Node]

    def __init__(self, volume: Volume, terms: Terms) -> None:
        superblock = volume.superblock
        super().__init__(superblock.fsid, read_only=True, file_limits=_limits(superblock))
        self._terms: Final = terms
        self._living: Final[Living[int, Ext4Node]] = Living()
        self._hidden: Final = superblock.hidden_inodes
        self._statistics: Statistics | None = None
        self._writer: Writer | None = None
        self._closed = False
        self._read_from(volume)

    def _read_from(self, volume: Volume) -> None:
        """Everything that is known comes from `volume`; nothing is known yet."""
        self.volume = volume
        self.maps = BlockMaps(volume)
        self.directories = Directories(volume, self.maps)
        self.orphans = Orphans(volume)
        self.names = Cache(image_limits.NAME_CACHE_MAX)
        self.blank_inode = changes.blank_inode(volume.superblock)
        self._nodes: Cache[int, Ext4Node] = Cache(image_limits.NODE_CACHE_MAX)

    # Nodes.

    def root(self) -> Ext4Node:
        return self.node(layout.EXT4_ROOT_INO)

    def node(self, number: int) -> Ext4Node:
        """The node of an inode. STALE: it is free."""
        node = self._nodes.get(number)
        if node is None:
            with self.lock:
                node = self._living.get(number)
                if node is None:
                    if number in self._hidden:
                        raise self.volume.damaged(f"inode {number}", "is not one that may be named")
                    node = Ext4Node(self, inodes.read(self.volume, number))
                    self._living.put(number, node)
                self._nodes.put(number, node)
        return node

    def named_node(self, number: int) -> Ext4Node:
        """The node of an inode that a directory names: so it should be in use."""
        try:
            return self.node(number)
        except VfsError as error:
            if error.code is Code.STALE:
                raise self.volume.damaged(f"inode {number}", "has a name, but is free") from None
            raise

    def resolve(self, handle: bytes) -> Ext4Node:
        if len(handle) != HANDLE.size:
            raise VfsError(Code.BADHANDLE, f"{len(handle)} bytes")
        number, generation = HANDLE.unpack(handle)
        node = self._nodes.get(number)
        if node is None:
            superblock = self.volume.superblock
            if number in self._hidden or (
                number < superblock.first_inode and number != layout.EXT4_ROOT_INO
            ):
                raise VfsError(Code.BADHANDLE, f"inode {number} was never given out")
            with self.lock:
                # Too high a number may be from before the file system was made smaller.
                if number > superblock.disk.s_inodes_count or not self.volume.inode_in_use(number):
                    raise VfsError(Code.STALE, f"inode {number} is free")
                node = self.node(number)
        if node.inode.disk.i_generation != generation:
            raise VfsError(Code.STALE, f"inode {number} is another file now")
        return node

    def new_node(self, inode: Inode) -> Ext4Node:
        """The node of an inode that was just published. The lock is held."""
        node = Ext4Node(self, inode)
        self._living.put(inode.number, node)
        self._nodes.put(inode.number, node)
        return node

    def _known(self, number: int) -> Inode | None:
        node = self._living.get(number)
        return None if node is None else node.inode

    def adopt(self, changed: Iterable[Inode]) -> None:
        """These inodes have changed. The lock is held."""
        for inode in changed:
            node = self._living.get(inode.number)
            if node is not None and not node.renew(inode):
                self._let_go(node)

    def _let_go(self, node: Ext4Node) -> None:
        """There is no such node any more, whoever still has it."""
        number = node.inode.number
        self._living.forget(number)
        self._nodes.forget(number)

    # Writing.

    def begin_writing(self) -> None:
        """From now on it can be changed; what was left half removed is removed."""
        terms = self._terms
        allocator = Allocator(self.volume)
        writer = Writer(
            self.volume, allocator, self.lock, terms.clock.wall, self._known, self.adopt
        )
        writer.journal = opening.open_journal(
            self.volume, terms, complete=writer.complete, failed=self._failed
        )
        removal.check_what_was_begun(self)
        self._writer = writer
        self.volume.distrust = self._distrust
        self.read_only = False
        self.has_background_work = True
        removal.finish_what_was_begun(self)

    def _distrust(self, reason: str) -> None:
        """Something that belongs to all is damaged."""
        if not self.read_only:
            self.read_only = True
            log.error("%s; from now on it is read-only: %s", reason, opening.E2FSCK)
            self.writer.stop(reason)

    def _failed(self, error: VfsError) -> None:
        self.read_only = True

    @property
    def writer(self) -> Writer:
        """Who changes this file system. ROFS: nobody may."""
        if self._writer is None:
            raise VfsError(Code.ROFS, f"{self.volume.name} is served read-only")
        return self._writer

    def check_writable(self) -> None:
        """ROFS: nobody may change it, or can any more."""
        self.writer.journal.check()

    def change(self, act: Callable[[Operation], T]) -> T:
        """Change something: all that `act` does, or nothing."""
        return self.writer.change(act)

    def finish_truncation(self, number: int) -> None:
        """If damage has stopped the truncation of a file half-way, finish it: before the file grows
        again over what was cut off. The lock is held. IO: it is stopped again."""
        if number in self.orphans.numbers:
            content.finish_truncation(self, number)

    def sync(self) -> Ticket | None:
        return None if self._writer is None else self._writer.journal.sync()

    def commit(self) -> None:
        if self._writer is not None:
            self._writer.journal.commit()

    def run_in_background(self) -> None:
        while not self._closed and self._writer is not None:
            self._writer.journal.run()  # returns, too, when there is another one
            with self.lock:
                pass  # until there is

    # Snapshots.

    def snapshot_create(self, name: str) -> None:
        store = self._store()
        with self.lock:
            self.commit()
            store.create(name, self._terms.clock.wall())

    def snapshots(self) -> list[Snapshot]:
        return self._store().names()

    def snapshot_rollback(self, name: str, then: Callable[[], None]) -> None:
        store = self._store()
        with self.lock:
            kept = store.names()
            if all(each.name != name for each in kept):
                raise unknown(name, kept)
            volume = self.volume
            volume.transfers.wait_until_quiet()
            self.writer.journal.abandon()
            try:
                try:
                    store.rollback(name)
                finally:
                    self._open_again(volume)
            finally:
                then()  # whatever came of it: what was not durable is lost

    def snapshot_delete(self, name: str) -> None:
        self._store().delete(name)

    def _store(self) -> BlockSnapshots:
        store = snapshots_of(self.volume.device)
        if store is None:
            raise VfsError(Code.NOTSUPP, f"{self.volume.name} is served without an overlay")
        if self._writer is None:
            raise VfsError(Code.ROFS, f"{self.volume.name} is served read-only")
        return store

    def _open_again(self, before: Volume) -> None:
        """Forget everything, and look at what is on the device now. IO: nothing can be done with
        that but to read it."""
        self._writer, self.read_only = None, True
        try:
            volume, writable = opening.ready_volume(before.device, before.name, self._terms)
            self._read_from(volume)
            for node in self._living.values():
                if not node.reload():
                    self._let_go(node)
            if writable:
                self.begin_writing()
        except (ImageError, VfsError) as error:
            reason = error.detail if isinstance(error, VfsError) else str(error)
            log.error("%s: from now on it is read-only: %s", before.name, reason)
            raise VfsError(Code.IO, reason) from None

    # How full it is, and the end.

    def statistics(self) -> Statistics:
        if self._writer is not None:
            allocator = self._writer.allocator
            return self._count(allocator.free_blocks, allocator.free_inodes)
        if self._statistics is None:
            self._statistics = self._count(*self.volume.free_blocks_and_inodes())
        return self._statistics

    def _count(self, free: int, free_inodes: int) -> Statistics:
        superblock = self.volume.superblock
        bits = superblock.block_bits
        overhead = superblock.disk.s_overhead_blocks * superblock.cluster_blocks
        total = superblock.blocks_count
        if overhead < total:
            total -= overhead
        return Statistics(
            total_bytes=total << bits,
            free_bytes=free << bits,
            available_bytes=max(0, free - superblock.reserved_blocks) << bits,
            total_files=superblock.disk.s_inodes_count,
            free_files=free_inodes,
            available_files=free_inodes,
        )

    def close(self) -> None:
        self._closed = True
        try:
            if self._writer is not None:
                with self.lock:
                    self.read_only = True
                    self._writer.close()
        finally:
            self.volume.device.close()

    def abandon(self) -> None:
        """Let go of it as if the process were killed here: nothing more is written."""
        self._closed = True
        if self._writer is not None:
            self._writer.journal.abandon()
        self.volume.device.close()


def _limits(superblock: Superblock) -> Limits:
    disk = superblock.disk
    has_large_files = disk.s_feature_ro_compat & layout.RO_COMPAT_LARGE_FILE
    extents = disk.s_feature_incompat & layout.INCOMPAT_EXTENTS
    pointer_bits = superblock.block_bits - 2
    blocks = 1 << 32
    if not extents:
        blocks = min(blocks, 12 + (1 << pointer_bits) + (1 << 2 * pointer_bits))
        blocks += 1 << 3 * pointer_bits
    largest = min(blocks - 1, (1 << 32) - 1) << superblock.block_bits
    return Limits(
        link_count_max=layout.EXT4_LINK_MAX,
        directory_link_count_max=(
            None if disk.s_feature_ro_compat & layout.RO_COMPAT_DIR_NLINK else layout.EXT4_LINK_MAX
        ),
        acls=bool(disk.s_feature_compat & layout.COMPAT_EXT_ATTR),
        file_bytes_max=largest if has_large_files else min(largest, _SMALL_FILE_BYTES_MAX),
        time_granularity_ns=1 if superblock.inode_bytes > 128 else _SECOND_NS,
    )
