"""Damaged and hostile images: a device in memory with a budget, and a walk that expects errors."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from appliance.fsimage.device import WritableBuffer
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Buffer, Entry, FileSystem, FileType, Node
from tests.unit.fsimage.ext4_images import look

SECONDS_MAX = 20
LIST_ENTRIES = 500
LIST_CALLS_MAX = 200
OBJECTS_MAX = 5000
READ_BYTES = 1 << 16
READ_CALLS_MAX = 100


class MemoryDevice:
    """A device whose bytes are at hand. It remembers where metadata was read (`read`, in contrast
    to the data of files, which comes through `readinto`), and has had enough at some time."""

    read_only = True

    def __init__(self, raw: bytes | bytearray, reads_max: int = 20_000) -> None:
        self.raw = raw
        self.size = len(raw)
        self.metadata: set[tuple[int, int]] = set()
        self._reads_left = reads_max

    def read(self, offset: int, count: int) -> bytes:
        self.metadata.add((offset, count))
        return self._bytes(offset, count)

    def _bytes(self, offset: int, count: int) -> bytes:
        self._reads_left -= 1
        assert self._reads_left, "this never ends"
        if not 0 <= offset <= offset + count <= self.size:
            raise VfsError(Code.IO, "outside")
        return bytes(self.raw[offset : offset + count])

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        for view in views:
            view[:] = self._bytes(offset, len(view))
            offset += len(view)

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        raise AssertionError("nobody writes to an image that is only read")

    def flush(self) -> None:
        raise AssertionError("nobody writes to an image that is only read")

    def close(self) -> None:
        """Nothing to let go of."""


@contextmanager
def bounded_time() -> Iterator[None]:
    """Fails if what happens inside takes too long."""

    def enough(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {SECONDS_MAX} s")

    before = signal.signal(signal.SIGALRM, enough)
    signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def survey(device: MemoryDevice) -> dict[str, dict[str, Any]] | None:
    """Everything that can be had of an image, by path; None if it is refused as a whole. Errors of
    objects are left out; any exception but those that are promised comes through."""
    with bounded_time():
        try:
            filesystem = open_ext4(device, "image")
        except (ImageError, VfsError):
            return None
        return _survey(filesystem)


def _survey(filesystem: FileSystem) -> dict[str, dict[str, Any]]:
    objects: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    pending: list[tuple[bytes, Node]] = [(b".", filesystem.root())]
    while pending and len(objects) < OBJECTS_MAX:
        path, node = pending.pop()
        attributes = node.attributes()
        if attributes.type is FileType.DIRECTORY:
            if attributes.fileid in seen:
                continue
            seen.add(attributes.fileid)
            pending += _children(path, node)
        found = _tolerant_look(node)
        if found is not None:
            objects[path.hex()] = found
    with damage_is_told():
        filesystem.statistics()
    return objects


@contextmanager
def damage_is_told(*codes: Code) -> Iterator[None]:
    """What may be raised inside is IO, or one of `codes`."""
    try:
        yield
    except VfsError as error:
        if error.code not in (Code.IO, *codes):
            raise


def _children(path: bytes, directory: Node) -> Iterator[tuple[bytes, Node]]:
    """What can be reached from a directory, by listing and by name."""
    for entry in _listing(directory):
        if entry.name not in (b".", b".."):
            with damage_is_told(Code.NOENT):
                yield path + b"/" + entry.name, directory.lookup(entry.name)


def _listing(directory: Node) -> list[Entry]:
    """The entries as far as they can be had."""
    found: list[Entry] = []
    cookie = 0
    with damage_is_told():
        for _ in range(LIST_CALLS_MAX):
            entries = directory.entries(cookie, LIST_ENTRIES)
            for entry in entries:
                assert entry.cookie > cookie
                cookie = entry.cookie
            found += entries
            if len(entries) < LIST_ENTRIES:
                break
    return found


def _tolerant_look(node: Node) -> dict[str, Any] | None:
    """What is known of an object, if all of it can be had."""
    with damage_is_told():
        if node.attributes().size > READ_BYTES * READ_CALLS_MAX:
            node.read(node.attributes().size // 2, READ_BYTES)
            return None
        if node.attributes().type is FileType.DIRECTORY:
            node.parent()
        return look(node)
    return None
