"""File systems that are seldom met: blocks of 64 KiB, a journal whose numbers begin anew, and a
directory with an index of three levels.

They are not among GEOMETRIES, with which all work is done: a state takes longer, or the work needs
what was prepared.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import Final

from appliance.fsimage.ext4 import directory_changes, index_changes, layout
from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4.directory_changes import DirectoryChange
from appliance.fsimage.ext4.extents import BlockMaps
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.fsimage.ext4.htree import Index
from appliance.fsimage.ext4.node import Ext4Node
from appliance.fsimage.ext4.operation import Operation
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.interface import FileType, NewNode
from tests.crash.geometry import Geometry
from tests.crash.recording import Image, MemoryDevice
from tests.crash.scripts import Script, blocks_of, reuse_as_data, until_checkpoint
from tests.crash.session import Session

_SEQUENCE_AT: Final = 0x18
_LEAVES: Final = 360
_NODES: Final = 126
"""Of the lowest level: as many as one block of the next has room for (at 1 KiB)."""

_FILE: Final = NewNode(FileType.REGULAR, 0o644, 0, 0)
_DIRECTORY: Final = NewNode(FileType.DIRECTORY, 0o755, 0, 0)


# --- what is prepared --------------------------------------------------------


def last_numbers(raw: bytes) -> bytes:
    """The journal has come to the last numbers that a transaction can have."""
    device = MemoryDevice(Image(raw).mapping())
    volume = Volume(device, Superblock.read(device), "new")
    journal = inodes.read_any(volume, layout.EXT4_JOURNAL_INO)
    at = (BlockMaps(volume).of(journal).find(0).physical << volume.block_bits) + _SEQUENCE_AT
    return raw[:at] + struct.pack(">I", 0xFFFF_FFF0) + raw[at + 4 :]


def three_levels(raw: bytes) -> bytes:
    """There is a directory "large", of one file's names, whose index has three levels: the middle
    one is full, and the first block of the lowest one nearly so."""
    device = MemoryDevice(Image(raw).mapping())
    filesystem = open_ext4(device, "new")
    root = filesystem.root()
    file, large = root.create(b"file", _FILE), root.create(b"large", _DIRECTORY)
    root.create(b"other", _DIRECTORY)
    assert isinstance(large, Ext4Node)
    for name in _names():
        large.link(name, file)
        if large.directory.index and len(large.directory.index.leaves) == _LEAVES:
            break
    while len(_index(large).levels) < 3:
        _change(filesystem, large, index_changes._push_down)
    while len(_index(large).levels[0].blocks) < _NODES:
        _change(filesystem, large, _split_largest)
    filesystem.close()
    return device.content[:]


def _names() -> Iterator[bytes]:
    return (b"%06d-" % number + b"n" * (248 - number % 5) for number in count())


def _index(directory: Ext4Node) -> Index:
    index = directory.directory.index
    assert index is not None
    return index


def _split_largest(change: DirectoryChange, index: Index) -> None:
    """Split a block of the lowest level, not the first."""
    starts = [*index.levels[0].starts, len(index.leaves)]
    sizes = [end - start for start, end in pairwise(starts)]
    index_changes._split_node(change, index, 0, sizes.index(max(sizes[1:]), 1))


def _change(
    filesystem: Ext4,
    directory: Ext4Node,
    act: Callable[[DirectoryChange, Index], None],
) -> None:
    def both(operation: Operation) -> None:
        change = directory_changes._change_of(directory.directory, operation)
        act(change, change.own_index())

    filesystem.change(both)


# --- scripts -----------------------------------------------------------------


def _entry(session: Session, name: bytes) -> int:
    return session.model.now[session.root].entries[name]


def _large(session: Session) -> Ext4Node:
    node = session.node(_entry(session, b"large"))
    assert isinstance(node, Ext4Node)
    return node


def _names_below_the_first(session: Session) -> Iterator[bytes]:
    """New names that belong below the first blocks of the lowest level."""
    large = _large(session)
    for number, name in enumerate(_names()):
        index = _index(large)
        at = index.leaf_of(large.directory.hash_of(name)[0])
        if number >= 10_000 and index.levels[0].node_of(at) <= 1:
            yield name


def three_levels_grow(session: Session) -> None:
    """Leaves split, blocks of the lowest level, and then the middle one."""
    large, file = _entry(session, b"large"), _entry(session, b"file")
    names = _names_below_the_first(session)
    for index in range(250):
        session.link(large, next(names), file)
        if index % 7 == 0:
            session.sync()
    session.sync()
    assert len(_index(_large(session)).levels[1].blocks) == 2, "the middle level did not split"


def three_levels_go(session: Session) -> None:
    """Names leave a directory of three levels, or change; then it goes, and its blocks are data."""
    large, other = _entry(session, b"large"), _entry(session, b"other")
    fresh = _names_below_the_first(session)
    for index, name in enumerate(list(session.model.now[large].entries)):
        if index % 4 == 0:
            session.rename(large, name, other, b"m" + name[: 1 + index % 200])
        elif index % 4 == 1 and index < 400:
            session.rename(large, name, large, next(fresh))
        else:
            session.remove(large, name)
        if index % 32 == 0:
            session.sync()
    session.rename(session.root, b"large", other, b"large")
    for name in list(session.model.now[large].entries):
        session.remove(large, name)
    session.sync()
    blocks = blocks_of(session, large)
    session.interrupt(0.5)
    session.remove(other, b"large")
    session.sync()
    reuse_as_data(session, other, blocks)
    until_checkpoint(session)


RARE_SCRIPTS: Final[dict[str, Script]] = {
    script.__name__.replace("_", "-"): script for script in (three_levels_grow, three_levels_go)
}

_SMALL: Final = ("-t", "ext4", "-I", "256", "-J", "size=1")

RARE_GEOMETRIES: Final = {
    geometry.name: geometry
    for geometry in (
        Geometry("64k", 1 << 16, 132 << 20, ("-t", "ext4", "-N", "512", "-J", "size=64")),
        Geometry(
            "last-numbers",
            1024,
            12 << 20,
            (*_SMALL, "-N", "768", "-g", "2048"),
            prepare=last_numbers,
        ),
        Geometry(
            "three-levels",
            1024,
            12 << 20,
            (*_SMALL, "-N", "64", "-O", "large_dir"),
            prepare=three_levels,
        ),
    )
}
