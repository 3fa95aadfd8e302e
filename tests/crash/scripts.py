"""Directed work: each script leads straight to one thing that a random one seldom meets.

A script is a function of a session. What it must reach is in its docstring; whoever breaks the
invariant that stands behind it is caught by a handful of crash states around there (mutants.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from appliance.fsimage.ext4 import layout
from appliance.vfs.interface import FileType, SetAttributes
from tests.crash.geometry import Place
from tests.crash.recording import Flush, Write
from tests.crash.session import Session
from tests.crash.workload import PACES, RandomWork

Script = Callable[[Session], None]

_JOURNAL_MAGIC: Final = b"\xc0\x3b\x39\x98"
_BIG_WRITE: Final = 1 << 16


# --- tools -------------------------------------------------------------------


def fill(session: Session, *, leave: int = 0) -> list[int]:
    """Use all blocks but `leave`; the files that hold them."""
    files = []
    index = 0
    while True:
        number = session.create(session.root, b"filler%d" % index)
        files.append(number)
        index += 1
        if not _append(session, number, leave):
            break
    session.sync()
    return files


def _append(session: Session, number: int, leave: int) -> bool:
    """Let a file grow to 1 MiB; whether there was room for it."""
    block = session.geometry.block_bytes
    for offset in range(0, 1 << 20, _BIG_WRITE):
        free = session.filesystem.statistics().free_bytes - leave * block
        count = min(_BIG_WRITE, free - 4 * block)
        if count <= 0:
            return False
        data = session.random.randbytes(count)
        if not session.tolerantly(session.write, number, offset, data):
            return False
        if count < _BIG_WRITE:
            return False
    return True


def use_the_rest(session: Session, name: bytes) -> int:
    """One file that takes block after block until none is left."""
    number = session.create(session.root, name)
    for blocks in (16, 4, 1):
        data = session.random.randbytes(blocks * session.geometry.block_bytes)
        while session.tolerantly(session.write, number, size_of(session, number), data):
            pass
    return number


def size_of(session: Session, number: int) -> int:
    return session.model.now[number].content.size


def many_names(session: Session, directory: int, count: int, prefix: bytes = b"name") -> None:
    """So many names for one file, which take blocks of the directory and nothing else."""
    number = session.create(directory, prefix + b"-file")
    for index in range(count):
        session.link(directory, prefix + b"-%04d-" % index + b"x" * 40, number)


def used_blocks(session: Session) -> set[int]:
    """All blocks that are in use, as the bitmaps of this moment say."""
    volume = session.filesystem.volume
    disk = volume.superblock.disk
    found: set[int] = set()
    for index in range(volume.superblock.groups_count):
        group = volume.group(index)
        if not group.bg_flags & layout.BG_BLOCK_UNINIT:
            bitmap = int.from_bytes(volume.block(group.bg_block_bitmap_lo), "little")
            first = index * disk.s_blocks_per_group + disk.s_first_data_block
            found |= {first + bit for bit in range(disk.s_blocks_per_group) if bitmap >> bit & 1}
    return found


def blocks_of(session: Session, number: int) -> set[int]:
    """The blocks that hold a file's data, or a directory's names."""
    inode = session.filesystem.node(number).inode
    blocks = -(-inode.size // session.geometry.block_bytes)
    extents = session.filesystem.maps.of(inode).extents(0, blocks)
    return {extent.physical + index for extent in extents for index in range(extent.count)}


def reuse_as_data(session: Session, directory: int, blocks: set[int]) -> None:
    """Write files until one of these blocks, which were freed, holds data, while the log still has
    what they held before. If it does not come to that, the script misses what it is for."""
    checkpoints = checkpoints_of(session)
    for index in range(40):
        number = session.create(directory, b"data%d" % index)
        session.write(number, 0, session.random.randbytes(4 * session.geometry.block_bytes))
        session.sync()
        if blocks & blocks_of(session, number):
            assert checkpoints_of(session) == checkpoints, "it took too long"
            return
    raise AssertionError("no freed block was used again")


def checkpoints_of(session: Session) -> int:
    """How often the log was given up."""
    return sum(
        isinstance(event, Write) and session.geometry.place(event) is Place.JOURNAL_SUPERBLOCK
        for event in session.recording.log
    )


def until_checkpoint(session: Session) -> None:
    """Transactions that have nothing to do with what was before, until the log is given up."""
    checkpoints = checkpoints_of(session)
    for index in range(1000):
        session.set_attributes(session.root, SetAttributes(mode=0o700 + index % 64))
        session.sync()
        if index % 16 == 15 and checkpoints_of(session) > checkpoints:
            session.compare()
            return
    raise AssertionError("the log never fills")


# --- scripts -----------------------------------------------------------------


def directory_block_becomes_data(session: Session) -> None:
    """A block that the log has as one of a directory is freed, and holds data afterwards: without
    a revoke record, recovery lays the old directory over the data; and a checkpoint must not."""
    above = session.mkdir(session.root, b"above")
    directory = session.mkdir(above, b"directory")
    many_names(session, directory, 4 * session.geometry.block_bytes // 64)
    session.sync()
    blocks = blocks_of(session, directory)
    for name in list(session.model.now[directory].entries):
        session.remove(directory, name)
    session.remove(above, b"directory")
    session.sync()
    reuse_as_data(session, above, blocks)
    until_checkpoint(session)


def index_block_becomes_data(session: Session) -> None:
    """The same with a block of an extent tree (or an indirect one) that a truncation frees."""
    above = session.mkdir(session.root, b"above")
    scattered = session.create(above, b"scattered")
    for index in range(40):
        session.write(scattered, index * 3 * session.geometry.block_bytes, b"piece %d" % index)
    session.sync()
    data, before = blocks_of(session, scattered), used_blocks(session)
    session.truncate(scattered, 0)
    session.sync()
    of_map = before - used_blocks(session) - data
    assert of_map, "the file had no block of its map"
    reuse_as_data(session, above, of_map)
    until_checkpoint(session)


def tail_is_extended(session: Session) -> None:
    """A file is cut in the middle of a block and grows again: what was there must not come back."""
    block = session.geometry.block_bytes
    for index, size in enumerate((block + 100, 2 * block - 1, block // 2, 3 * block)):
        number = session.create(session.root, b"tail%d" % index)
        session.write(number, 0, session.random.randbytes(3 * block + 5))
        session.sync()
        session.truncate(number, size)
        session.sync()
        session.truncate(number, 4 * block + 7)
        session.sync()
        session.truncate(number, size)
        session.write(number, 5 * block + 9, b"behind a hole")
        session.sync()
        session.compare()


def freed_block_is_wanted_again(session: Session) -> None:
    """When everything is full, a file is removed and another one written before that is durable:
    a crash may bring the first one back, with its bytes."""
    files = fill(session)
    for index, number in enumerate(files[:4]):
        name = b"filler%d" % index
        data = session.random.randbytes(size_of(session, number))
        session.remove(session.root, name)
        other = session.create(session.root, b"other%d" % index)
        session.tolerantly(session.write, other, 0, data)
        if index % 2:
            session.sync()


def many_turns_of_the_log(session: Session) -> None:
    """The log wraps again and again."""
    work = RandomWork(session, PACES["every"], names_max=60)
    work.run(450)


def blocks_like_the_journals_own(session: Session) -> None:
    """Blocks that begin with the magic of the journal: an inode bitmap, and the text of long
    symbolic links."""
    superblock = session.filesystem.volume.superblock
    per_group = superblock.disk.s_inodes_per_group
    wanted = int.from_bytes(_JOURNAL_MAGIC, "little")
    for index in range(3):
        session.symlink(session.root, b"link%d" % index, _JOURNAL_MAGIC + b"t" * 500)
        session.sync()
    names: dict[int, bytes] = {}
    for index in range(2 * per_group):
        name = b"inode%d" % index
        names[session.create(session.root, name, FileType.FIFO)] = name
    session.sync()
    for number, name in names.items():
        group, bit = divmod(number - 1, per_group)
        if group == 1 and bit < 32 and not wanted >> bit & 1:
            session.remove(session.root, name)
    session.sync()
    assert session.filesystem.volume.block(inode_bitmap_of(session, 1))[:4] == _JOURNAL_MAGIC
    until_checkpoint(session)


def inode_bitmap_of(session: Session, group: int) -> int:
    return session.filesystem.volume.group(group).bg_inode_bitmap_lo


def large_files_go(session: Session) -> None:
    """Files of so many extents that removing or cutting them takes several operations, with commits
    in between: meanwhile they are in the list of orphans."""
    block = session.geometry.block_bytes
    numbers = []
    for index in range(3):
        number = session.create(session.root, b"large%d" % index)
        numbers.append(number)
        for piece in range(220):
            session.write(number, piece * 2 * block, b"%d of %d" % (piece, index))
    session.sync()
    start = len(session.recording.log)
    session.interrupt(0.7)
    session.truncate(numbers[0], 11 * block + 3)
    session.remove(session.root, b"large1")
    session.remove(session.root, b"large2")
    session.truncate(numbers[0], 0)
    assert sum(isinstance(event, Flush) for event in session.recording.log[start:]) > 10
    session.sync()


def checkpoint_below_a_transaction(session: Session) -> None:
    """The log fills up while a long transaction runs, whose blocks are not to be written to their
    places yet."""
    directory = session.mkdir(session.root, b"directory")
    for turn in range(40):
        for index in range(25):
            session.create(directory, b"file-%d-%d" % (turn, index), owner=(turn, index))
        session.sync()
        for index in range(25):
            session.remove(directory, b"file-%d-%d" % (turn, index))


def directories_move(session: Session) -> None:
    """Directories are renamed into others, over empty ones, and back."""
    one, two = session.mkdir(session.root, b"one"), session.mkdir(session.root, b"two")
    child = session.mkdir(one, b"child")
    session.create(child, b"file")
    session.sync()
    session.rename(one, b"child", two, b"moved")
    session.sync()
    session.mkdir(one, b"empty")
    session.rename(two, b"moved", one, b"empty")
    session.sync()
    session.rename(session.root, b"two", child, b"deep")
    session.rename(one, b"empty", session.root, b"child")
    session.sync()


def a_directory_grows(session: Session) -> None:
    """A directory gets an index, its leaves split, and it is emptied again."""
    directory = session.mkdir(session.root, b"directory")
    names = []
    number = session.create(directory, b"the-file")
    for index in range(160):
        names.append(b"%03d-" % index + b"n" * session.random.choice((10, 60, 200)))
        session.link(directory, names[-1], number)
        if index % 8 == 0:
            session.sync()
    session.compare()
    session.random.shuffle(names)
    for index, name in enumerate(names):
        session.remove(directory, name)
        if index % 16 == 0:
            session.sync()
    session.compare()


def everything_is_full(session: Session) -> None:
    """No block is left; then no inode. Whatever is refused has changed nothing."""
    fill(session)
    use_the_rest(session, b"rest")
    session.compare()
    directory = session.model.root
    for index in range(30):
        session.tolerantly(session.symlink, directory, b"long%d" % index, b"t" * 500)
        session.tolerantly(session.mkdir, directory, b"directory%d" % index)
    session.compare()
    session.sync()
    for name in list(session.model.now[directory].entries):
        if name.startswith(b"filler"):
            session.remove(directory, name)
    session.sync()
    index = 0
    while session.tolerantly(session.create, directory, b"inode%d" % index, FileType.FIFO):
        index += 1
        if index % 40 == 0:
            session.sync()
    session.compare()
    session.sync()


def overwritten_in_place(session: Session) -> None:
    """Data that is written twice, thrice, in pieces, with and without anybody who waits for it."""
    block = session.geometry.block_bytes
    number = session.create(session.root, b"file")
    session.write(number, 0, session.random.randbytes(8 * block))
    session.sync()
    for turn in range(12):
        offset = session.random.randrange(7 * block)
        session.write(number, offset, session.random.randbytes(session.random.randrange(1, block)))
        if turn % 3 == 0:
            session.sync_node(number)
        if turn % 5 == 0:
            session.sync()


def same_again(session: Session) -> None:
    """Transactions of two sizes, so that some begin where those of an earlier life began."""
    lost_found = session.model.now[session.root].entries[b"lost+found"]
    for _ in range(30):
        for number in (session.root, lost_found)[: session.random.randint(1, 2)]:
            session.set_attributes(number, SetAttributes(uid=session.random.getrandbits(30)))
        session.sync()


def attributes_come_and_go(session: Session) -> None:
    """Attributes that are too long for the inode."""
    numbers = [session.create(session.root, b"file%d" % index) for index in range(4)]
    for value in (b"long" * 100, b"other" * 120, b"short"):
        for number in numbers:
            session.set_xattr(number, b"user.name", value)
            session.sync()
    for index, number in enumerate(numbers):
        session.set_xattr(number, b"user.more", b"more" * 90)
        session.sync()
        session.remove_xattr(number, b"user.name")
        if index % 2:
            session.remove(session.root, b"file%d" % index)
    session.sync()


SCRIPTS: Final[dict[str, Script]] = {
    script.__name__.replace("_", "-"): script
    for script in (
        directory_block_becomes_data,
        index_block_becomes_data,
        tail_is_extended,
        freed_block_is_wanted_again,
        many_turns_of_the_log,
        blocks_like_the_journals_own,
        large_files_go,
        checkpoint_below_a_transaction,
        directories_move,
        a_directory_grows,
        everything_is_full,
        overwritten_in_place,
        attributes_come_and_go,
        same_again,
    )
}
