"""An image, used through our own file system layer: no RPC, no network.

Each method takes samples for some rows of the table (image.py); those of the same names in
image_mounted.py do the same with system calls.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.node import Ext4Node
from appliance.fsimage.image import open_image
from appliance.limits import KiB
from appliance.vfs.interface import FileSystem, FileType, NewNode, Node, SetAttributes
from tests.bench import image_tree as tree
from tests.bench.measuring import Sample, Timer

NEW_FILE: Final = NewNode(FileType.REGULAR, 0o644, 0, 0)
NEW_DIRECTORY: Final = NewNode(FileType.DIRECTORY, 0o755, 0, 0)
CHANGED: Final = SetAttributes(mode=0o600)
PIECE: Final = 64 * KiB
LISTED: Final = 400
"""Entries in one answer to a client."""

Samples = dict[str, Sample]


class Ours:
    """One image, opened by us."""

    name = "ours"

    def __init__(self, image: Path, durability: Durability = Durability.PROCESS) -> None:
        self._image: Final = image
        self._durability: Final = durability
        self._timer: Final = Timer()
        self._rounds = 0
        self._filesystem = self._open()
        self._journal: threading.Thread | None = None
        if durability is Durability.FULL:  # there is a thread that commits, as in the appliance
            body = self._filesystem.run_in_background
            self._journal = threading.Thread(target=body, name="journal")
            self._journal.start()

    def _open(self) -> FileSystem:
        return open_image(str(self._image), read_only=False, durability=self._durability)

    def close(self) -> None:
        self._filesystem.close()
        if self._journal is not None:
            self._journal.join()

    def _cold(self) -> Node:
        """The root, with nothing known: as after a start. (The image is in the host's memory.)"""
        self._filesystem.close()
        self._filesystem = self._open()
        return self._filesystem.root()

    # Looking.

    def look(self) -> Samples:
        root = self._cold()
        small = [root.lookup(name) for name in tree.SMALL_DIRECTORIES]
        names = tree.SMALL_NAMES

        def uncached() -> int:
            for directory in small:
                lookup = directory.lookup
                for name in names:
                    lookup(name).attributes()
            return len(small) * len(names)

        found = {"LOOKUP, uncached, directories of 100": self._timer(uncached)}
        large, shuffled = root.lookup(tree.LARGE), tree.large_names_shuffled()

        def uncached_large() -> int:
            lookup = large.lookup
            for name in shuffled:
                lookup(name).attributes()
            return len(shuffled)

        found["LOOKUP, uncached, a directory of 20,000"] = self._timer(uncached_large)
        found["LOOKUP, cached"] = self._timer(uncached)
        node = small[0].lookup(names[0])

        def attributes() -> int:
            for _ in range(50_000):
                node.attributes()
            return 50_000

        found["GETATTR, cached"] = self._timer(attributes)
        large = self._cold().lookup(tree.LARGE)
        found["list with attributes, uncached"] = self._timer(lambda: _list(large))
        found["list with attributes, cached"] = self._timer(lambda: _list(large))
        return found

    def read(self) -> Samples:
        node = self._filesystem.root().lookup(tree.FILE)
        read, size = node.read, tree.FILE_BYTES
        offsets = [at * 4 * KiB for at in range(size // (4 * KiB))]
        some = random.Random(1).sample(offsets, 5000)

        def in_order() -> int:
            for offset in range(0, size, PIECE):
                read(offset, PIECE)
            return size // PIECE

        def here_and_there() -> int:
            for offset in some:
                read(offset, 4 * KiB)
            return len(some)

        self._forget()  # how the image was copied says how it lies in the host's memory; a user's
        in_order()  # was read from a disk, as the mounted one's was here
        return {
            "READ 64 KiB, limit: bare preadv": self._timer(self._bare(node, size), size),
            "READ 64 KiB, warm": self._timer(in_order, size),
            "READ 4 KiB, here and there": self._timer(here_and_there),
        }

    def _forget(self) -> None:
        """The host shall have nothing of the image in its memory."""
        with self._image.open("r+b") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _bare(self, node: Node, size: int) -> Callable[[], int]:
        """What the host takes to copy the same bytes out of the image."""
        assert isinstance(node, Ext4Node)
        extent = node.block_map.find(0)
        start = extent.physical * tree.BLOCK_BYTES
        assert extent.count * tree.BLOCK_BYTES >= size
        buffer = bytearray(PIECE)

        def run() -> int:
            with self._image.open("rb", buffering=0) as file:
                for offset in range(start, start + size, PIECE):
                    os.preadv(file.fileno(), (buffer,), offset)
            return size // PIECE

        return run

    # Data.

    def write(self) -> Samples:
        """Over what is there, and new blocks in their place when they are free again."""
        root = self._filesystem.root()
        node = root.create(b"stream", NEW_FILE)
        found = {"WRITE 64 KiB, new blocks": self._stream(node)}
        found["WRITE 64 KiB, overwriting"] = self._stream(node)
        root.remove(b"stream")
        self._filesystem.commit()
        return found

    def write_sparse(self) -> Samples:
        """New blocks that the host has not seen before either: each time another file."""
        self._rounds += 1
        node = self._filesystem.root().create(b"sparse-%d" % self._rounds, NEW_FILE)
        return {"WRITE 64 KiB, new blocks, sparse image": self._stream(node)}

    def _stream(self, node: Node) -> Sample:
        data = [bytes(PIECE)]
        write, size = node.write, tree.STREAM_BYTES

        def stream() -> int:
            for offset in range(0, size, PIECE):
                write(offset, data)
            return size // PIECE

        sample = self._timer(stream, size)
        self._filesystem.commit()
        return sample

    # Names.

    def live(self, group: int) -> Samples:
        """Files come, change, move and go; of `group` at a time everybody waits for one commit."""
        self._rounds += 1
        root, sync = self._filesystem.root(), self._filesystem.sync
        directory = root.create(b"live-%d" % self._rounds, NEW_DIRECTORY)
        names, others = tree.LIVE_NAMES, tree.OTHER_NAMES
        nodes: list[Node] = []

        def each(act: Callable[[int], object]) -> Sample:
            def run() -> int:
                for start in range(0, len(names), group):
                    for at in range(start, start + group):
                        act(at)
                    sync()
                return len(names)

            return self._timer(run)

        found = {
            "create": each(lambda at: nodes.append(directory.create(names[at], NEW_FILE))),
            "setattr": each(lambda at: nodes[at].set_attributes(CHANGED)),
            "rename": each(lambda at: directory.rename(names[at], directory, others[at])),
            "unlink": each(lambda at: directory.remove(others[at])),
        }
        root.rmdir(b"live-%d" % self._rounds)
        self._filesystem.commit()
        how = "alone" if group == 1 else f"in groups of {group}"
        return {f"{what}, {how}": sample for what, sample in found.items()}

    # What is durable.

    def last(self, clients: int, count: int) -> Samples:
        """The same, each change made durable, for so many clients at a time: each goes on when the
        ticket of its last change is settled."""
        self._rounds += 1
        root = self._filesystem.root()
        directory = root.create(b"last-%d" % self._rounds, NEW_DIRECTORY)
        names, others = tree.LIVE_NAMES[:count], tree.OTHER_NAMES[:count]
        nodes: list[Node] = []

        def each(act: Callable[[int], object]) -> Sample:
            return self._timer(lambda: self._keep(clients, count, act))

        found = {
            "create": each(lambda at: nodes.append(directory.create(names[at], NEW_FILE))),
            "setattr": each(lambda at: nodes[at].set_attributes(CHANGED)),
            "rename": each(lambda at: directory.rename(names[at], directory, others[at])),
            "unlink": each(lambda at: directory.remove(others[at])),
        }
        return {f"{what}, durable, {clients} at a time": s for what, s in found.items()}

    def _keep(self, clients: int, count: int, act: Callable[[int], object]) -> int:
        """Do something `count` times, so that up to `clients` tickets are outstanding."""
        free = threading.Semaphore(clients)

        def settled(error: Exception | None) -> None:
            assert error is None
            free.release()

        for at in range(count):
            free.acquire()
            act(at)
            ticket = self._filesystem.sync()
            if ticket is None:
                free.release()
            else:
                ticket.when_durable(settled)
        for _ in range(clients):
            free.acquire()
        return count


def _list(directory: Node) -> int:
    """As READDIRPLUS does; how many entries there are."""
    count = cookie = 0
    while entries := directory.entries(cookie, LISTED):
        count, cookie = count + len(entries), entries[-1].cookie
        for entry in entries:
            assert entry.node is not None
            entry.node.attributes()
    return count


def opened(image: Path) -> Sample:
    """How long it takes until an image can be used."""
    timer = Timer()
    found: list[FileSystem] = []

    def act() -> int:
        found.append(open_image(str(image), read_only=False))
        found[0].root().attributes()
        return 1

    sample = timer(act)
    found[0].close()
    return sample


def fill_journal(image: Path) -> None:
    """Changes, each in a transaction of its own, until much of the journal is full of them; then
    the process is killed, as far as the image can tell."""
    filesystem = open_image(str(image), read_only=False, durability=Durability.PROCESS)
    assert isinstance(filesystem, Ext4)
    for number in range(1000):
        filesystem.root().create(b"file-%04d" % number, NEW_FILE)
        filesystem.sync()
    filesystem.abandon()
