"""What somebody (we, or the kernel) sees in a file system, and whether it may look like that.

After a crash it has to look as after one of the operations between the last that was acknowledged
as durable, and the last that had begun: names, attributes, targets, all of it. Only the bytes of
files are different, because they are written in place, before the operation counts:

* What belongs to the version that the names and attributes are of, and was not written since, is
  there, exactly: data is durable before what makes it count.
* Where later operations wrote, every sector (of 512 bytes) is as it was, or as one of those writes
  left it. Whatever else they did (cut off, extend, remove) leaves no trace in the bytes.
* So what nobody ever wrote there is never seen: nothing of other files, and no zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final

from appliance.vfs.interface import Attributes, FileType
from appliance.vfs.interface import Node as FileNode
from tests.crash.model import CHUNK, Content, Model, Node
from tests.crash.recording import SECTOR

WHOLE_BYTES_MAX: Final = 4 << 20
"""Larger files are sparse; of those, what was ever written is read."""

_LIST_ENTRIES: Final = 200


Probes = Callable[[int], set[int]]
"""Of a large file (an inode), the chunks that are worth reading."""


class Eyes(Enum):
    """Who looks. Each knows less than the one before."""

    OURS = 1
    """We do, after our own recovery: everything is as it was."""
    E2FSCK = 2
    """We do, after e2fsck: it may have counted the blocks of a truncated orphan anew."""
    KERNEL = 3
    """The kernel, which shows neither handles nor change attributes, and which sets the times of a
    file when it finishes its truncation."""


@dataclass(slots=True)
class Seen:
    """One object."""

    attributes: Attributes
    handle: bytes
    target: bytes
    content: Content
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


Sight = dict[bytes, Seen]


# --- looking -----------------------------------------------------------------


def see(top: FileNode, probes: Probes) -> Sight:
    """All that is below a directory, by path; it itself is b""."""
    found: Sight = {}
    pending: list[tuple[bytes, FileNode]] = [(b"", top)]
    while pending:
        path, node = pending.pop()
        found[path] = look(node, probes)
        if found[path].attributes.type is FileType.DIRECTORY:
            pending += [(path + b"/" + name, below) for name, below in children(node)]
    return found


def children(directory: FileNode) -> list[tuple[bytes, FileNode]]:
    """Names in a directory, each looked up as well."""
    cookie, found = 0, []
    while True:
        entries = directory.entries(cookie, _LIST_ENTRIES)
        for entry in entries:
            if entry.name not in (b".", b".."):
                node = directory.lookup(entry.name)
                attributes = node.attributes()
                assert attributes.fileid == entry.fileid, entry.name
                if attributes.type is FileType.DIRECTORY:
                    assert node.parent().handle == directory.handle, entry.name
                found.append((entry.name, node))
        if len(entries) < _LIST_ENTRIES:
            break
        cookie = entries[-1].cookie
    assert len({name for name, _ in found}) == len(found), "a name is listed twice"
    return found


def look(node: FileNode, probes: Probes) -> Seen:
    attributes = node.attributes()
    target = node.readlink() if attributes.type is FileType.SYMLINK else b""
    xattrs = {name: node.xattr(name) for name in node.xattrs()}
    content = Content(size=attributes.size)
    if attributes.type is FileType.REGULAR:
        content = _content(node, attributes.size, probes(attributes.fileid))
    return Seen(attributes, node.handle, target, content, xattrs)


def _content(node: FileNode, size: int, probes: set[int]) -> Content:
    if size <= WHOLE_BYTES_MAX:
        buffers, at_end = node.read(0, size + 1)
        assert at_end
        content = Content.of(b"".join(buffers))
        assert content.size == size
        return content
    content = Content()
    for index in sorted(probes):
        buffers, _ = node.read(index * CHUNK, CHUNK)
        content = content.write(index * CHUNK, b"".join(buffers))
    return content.resize(size)


# --- comparing ---------------------------------------------------------------


@dataclass(slots=True, frozen=True)
class Window:
    """Which versions may be seen after a crash: from `floor` to `begun`. Of files whose data was
    acknowledged by itself (inodes in `written`), only bytes from that operation on."""

    floor: int
    begun: int
    written: dict[int, int] = field(default_factory=dict)


class Judge:
    """Compares what is seen with the versions of a model."""

    def __init__(self, model: Model) -> None:
        self._model: Final = model
        self._flat: Final[dict[tuple[int, Eyes], dict[bytes, object]]] = {}

    def problem(self, sight: Sight, window: Window, eyes: Eyes) -> str:
        """Why this cannot be what a crash left, in words; "" if it can. To eyes that see whole
        seconds only, several versions may look alike: it may be any of them."""
        found = {path: _signature_of_seen(seen, eyes) for path, seen in sight.items()}
        nearest: list[str] = []
        wrong_data = ""
        for number in range(window.begun, window.floor - 1, -1):
            expected = self._expected(number, eyes)
            differences = [] if found == expected else _differences(found, expected)
            if not differences and eyes is Eyes.KERNEL:
                differences = self._other_times(sight, number)
            if not differences:
                problem = self._data_problem(sight, number, window)
                if not problem:
                    return ""
                wrong_data = wrong_data or problem
            elif not nearest or len(differences) < len(nearest) - 1:
                nearest = [f"nearest is {number}", *differences]
        if wrong_data:
            return wrong_data
        return f"is no version of {window.floor}..{window.begun}: {'; '.join(nearest[:6])}"

    def _other_times(self, sight: Sight, number: int) -> list[str]:
        """Which files have other times than in version `number`. Those may that were being cut off
        when the crash came: the kernel has just finished that."""
        model = self._model
        before = model.versions[max(0, number - 1)]
        said = []
        for path, inode, node in model.walk(model.versions[number]):
            seen, attributes = sight[path].attributes, node.attributes
            assert attributes is not None
            same = (seen.mtime_ns, seen.ctime_ns) == (attributes.mtime_ns, attributes.ctime_ns)
            earlier = before.get(inode)
            was_cut = earlier is not None and earlier.content.size > node.content.size
            if not same and not (was_cut and seen.mtime_ns == seen.ctime_ns > attributes.ctime_ns):
                said.append(f"{path!r} has other times: {seen}")
        return said

    def _expected(self, number: int, eyes: Eyes) -> dict[bytes, object]:
        flat = self._flat.get((number, eyes))
        if flat is None:
            model = self._model
            version = model.versions[number]
            flat = self._flat[number, eyes] = {
                path: _signature_of_node(node, eyes) for path, _, node in model.walk(version)
            }
        return flat

    def _data_problem(self, sight: Sight, number: int, window: Window) -> str:
        """What is wrong with the bytes, given that the rest is version `number`."""
        model = self._model
        version = model.versions[number]
        for path, inode, node in model.walk(version):
            content = sight[path].content
            first = max(number, window.written.get(inode, 0))
            if first == number and content.chunks == node.content.chunks:
                continue
            history = _History(model, inode, first, window.begun)
            bad = history.bad_sector(content)
            if bad is not None:
                return (
                    f"is version {number}, but byte {bad} of {path!r} (inode {inode}) is none of"
                    f" the contents that it had in {first}..{window.begun}"
                )
        return ""


class _History:
    """What the sectors of a file may hold: its content in version `first`, or what later writes
    made of them, up to version `last`."""

    def __init__(self, model: Model, inode: int, first: int, last: int) -> None:
        node = model.versions[first].get(inode)
        self._first: Final = node.content if node is not None else Content()
        self._later: Final[list[tuple[int, int, Content]]] = []
        for number, start, end in model.writes.get(inode, []):
            later = model.versions[number].get(inode) if first < number <= last else None
            if later is not None and node is not None and later.handle == node.handle:
                self._later.append((start, end, later.content))

    def bad_sector(self, seen: Content) -> int | None:
        """Where the first sector begins that holds what it cannot hold."""
        contents = [seen, self._first, *(content for _, _, content in self._later)]
        for index in sorted({index for content in contents for index in content.chunks}):
            for start in range(index * CHUNK, min(index * CHUNK + CHUNK, seen.size), SECTOR):
                if not self._may_hold(seen.read(start, min(SECTOR, seen.size - start)), start):
                    return start
        return None

    def _may_hold(self, piece: bytes, at: int) -> bool:
        """Whether the sector at `at` may begin with `piece`."""
        if self._first.read(at, len(piece)) == piece:
            return True
        return any(
            start < at + SECTOR and at < end and content.read(at, len(piece)) == piece
            for start, end, content in self._later
        )


# --- signatures --------------------------------------------------------------


def _signature_of_seen(seen: Seen, eyes: Eyes) -> object:
    return _signature(seen.attributes, seen.handle, seen.target, seen.xattrs, eyes)


def _signature_of_node(node: Node, eyes: Eyes) -> object:
    assert node.attributes is not None
    return _signature(node.attributes, node.handle, node.new.target, node.xattrs, eyes)


def _signature(
    attributes: Attributes, handle: bytes, target: bytes, xattrs: dict[bytes, bytes], eyes: Eyes
) -> object:
    if eyes is Eyes.KERNEL:
        attributes, handle = replace(attributes, change=0, mtime_ns=0, ctime_ns=0), b""
    return (attributes, handle, target, xattrs)


def _differences(found: dict[bytes, object], expected: dict[bytes, object]) -> list[str]:
    """In which names two trees differ."""
    said = [f"{path!r} is missing" for path in expected.keys() - found.keys()]
    said += [f"{path!r} should not be there" for path in found.keys() - expected.keys()]
    said += [
        f"{path!r} is {found[path]}, should be {expected[path]}"
        for path in found.keys() & expected.keys()
        if found[path] != expected[path]
    ]
    return said
