"""The file system in memory: limits, cookies, identity, and what concurrent users see."""

from __future__ import annotations

import random
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.clock import SECOND
from appliance.limits import KiB, MiB
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileType, NewNode, Node, SetAttributes
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.sparse import CHUNK_BYTES, PAGE_BYTES
from tests.unit.vfs.tools import HandClock, content, listing, memory, names, refused, text

FILE = NewNode(FileType.REGULAR, 0o644, 0, 0)
DIRECTORY = NewNode(FileType.DIRECTORY, 0o755, 0, 0)


def filled(count: int, filesystem: MemoryFileSystem | None = None) -> Node:
    """A directory with `count` files, named by their numbers."""
    root = (filesystem or memory()).root()
    for number in range(count):
        root.create(b"%d" % number, FILE)
    return root


# Directories.


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1000])
def test_pages_of_any_size_give_every_entry_once(page: int) -> None:
    root = filled(30)
    assert names(root, page) == [b"%d" % number for number in range(30)]


def test_dots_are_entries_with_nodes() -> None:
    root = memory().root()
    below = root.create(b"below", DIRECTORY)
    dot, dot_dot = below.entries(0, 2)
    assert (dot.name, dot.node, dot.fileid) == (b".", below, below.attributes().fileid)
    assert (dot_dot.name, dot_dot.node) == (b"..", root)
    assert below.entries(dot.cookie, 5) == [dot_dot]
    assert below.entries(dot_dot.cookie, 5) == []


def test_ten_thousand_entries_change_while_they_are_listed() -> None:
    """What stays is given exactly once, whatever else comes and goes."""
    root = filled(10_000)
    chance = random.Random(5)
    staying = {b"%d" % number for number in range(0, 10_000, 3)}
    seen: list[bytes] = []
    cookie, page = 0, 97
    while True:
        entries = root.entries(cookie, page)
        seen += [entry.name for entry in entries]
        if len(entries) < page:
            break
        cookie = entries[-1].cookie
        for _ in range(60):
            name = b"%d" % chance.randrange(10_000)
            if name not in staying:
                try:
                    root.remove(name)
                except VfsError:
                    root.create(name, FILE)
    assert staying <= set(seen)
    assert all(seen.count(name) == 1 for name in chance.sample(sorted(staying), 200))
    assert len([name for name in seen if name in staying]) == len(staying)


def test_a_cookie_is_good_after_its_entry_has_gone() -> None:
    root = filled(200)
    middle = listing(root)[100]
    for number in range(150):
        root.remove(b"%d" % number)
    assert [entry.name for entry in root.entries(middle.cookie, 3)] == [b"150", b"151", b"152"]


@given(st.integers(0, (1 << 64) - 1))
def test_any_number_serves_as_a_cookie(cookie: int) -> None:
    assert len(filled(3).entries(cookie, 100)) <= 5


def test_removed_entries_do_not_pile_up() -> None:
    root = memory(nodes=4).root()
    for _ in range(10_000):
        root.create(b"name", FILE)
        root.remove(b"name")
    assert len(root._list) < 100


# Identity.


def test_a_handle_finds_its_node_through_renames() -> None:
    filesystem = memory()
    root = filesystem.root()
    node = root.create(b"one", FILE)
    root.rename(b"one", root.create(b"d", DIRECTORY), b"two")
    assert filesystem.resolve(node.handle) is node


def test_a_removed_node_is_stale_also_when_its_name_is_used_again() -> None:
    filesystem = memory()
    root = filesystem.root()
    old = root.create(b"name", FILE)
    root.remove(b"name")
    new = root.create(b"name", FILE)
    assert new.attributes().fileid != old.attributes().fileid
    refused(Code.STALE, lambda: filesystem.resolve(old.handle))
    refused(Code.STALE, lambda: old.write(0, [b"x"]))
    refused(Code.STALE, lambda: root.link(b"again", old))


def test_nothing_is_made_in_a_removed_directory() -> None:
    root = memory().root()
    gone = root.create(b"d", DIRECTORY)
    file = root.create(b"file", FILE)
    root.rmdir(b"d")
    refused(Code.STALE, lambda: gone.create(b"x", FILE))
    refused(Code.STALE, lambda: gone.link(b"x", file))
    refused(Code.STALE, lambda: root.rename(b"file", gone, b"x"))
    assert names(root) == [b"file"]


def test_handles_of_another_start_are_stale() -> None:
    before = memory(fsid=5)
    after = MemoryFileSystem(1 * MiB, fsid=5, clock=HandClock(), random=random.Random(99))
    refused(Code.STALE, lambda: after.resolve(before.root().handle))


# Attributes.


def test_every_change_is_seen_though_the_clock_stands_still() -> None:
    root = memory().root()
    file = root.create(b"file", FILE)
    seen = [file.attributes().change]
    for act in (
        lambda: file.write(0, [b"x"]),
        lambda: file.write(0, [b"x"]),
        lambda: file.set_attributes(SetAttributes(mode=0o600)),
        lambda: root.link(b"again", file),
        lambda: root.rename(b"again", root, b"other"),
        lambda: root.remove(b"other"),
    ):
        act()
        seen.append(file.attributes().change)
    assert seen == sorted(set(seen))


def test_times_follow_the_clock() -> None:
    clock = HandClock(wall=100 * SECOND)
    root = memory(clock=clock).root()
    file = root.create(b"file", FILE)
    clock.advance(10 * SECOND)
    file.write(0, [b"x"])
    its = file.attributes()
    assert (its.atime_ns, its.mtime_ns, its.ctime_ns) == (
        100 * SECOND,
        110 * SECOND,
        110 * SECOND,
    )
    clock.advance(10 * SECOND)
    file.set_attributes(SetAttributes(mode=0o600))
    assert (file.attributes().mtime_ns, file.attributes().ctime_ns) == (110 * SECOND, 120 * SECOND)
    file.set_attributes(SetAttributes(size=1))  # to what it is: still a modification
    assert file.attributes().mtime_ns > 110 * SECOND
    file.set_attributes(SetAttributes(size=0, mtime_ns=5))
    assert file.attributes().mtime_ns == 5


def test_attributes_are_replaced_and_not_changed() -> None:
    file = memory().root().create(b"file", FILE)
    before = file.attributes()
    assert file.attributes() is before
    file.write(0, [b"abc"])
    assert (before.size, file.attributes().size) == (0, 3)


# Room.


def test_full_means_full_and_comes_back() -> None:
    filesystem = memory(256 * KiB)
    file = filesystem.root().create(b"file", FILE)
    file.write(0, [bytes(200 * KiB)])
    before = file.attributes()
    refused(Code.NOSPC, lambda: file.write(200 * KiB, [bytes(57 * KiB)]))
    assert file.attributes() is before
    assert filesystem.statistics().free_bytes == 56 * KiB
    file.write(200 * KiB, [bytes(56 * KiB)])
    file.write(0, [b"x" * (200 * KiB)])  # over what is there: needs no room
    assert filesystem.statistics().free_bytes == 0
    assert file.attributes().used == 256 * KiB
    file.set_attributes(SetAttributes(size=CHUNK_BYTES + 1))
    assert file.attributes().used == CHUNK_BYTES + PAGE_BYTES
    filesystem.root().remove(b"file")
    assert filesystem.statistics().free_bytes == 256 * KiB


def test_nodes_are_limited_too() -> None:
    filesystem = memory(nodes=3)
    root = filesystem.root()
    root.create(b"1", FILE)
    root.create(b"2", DIRECTORY)
    refused(Code.NOSPC, lambda: root.create(b"3", FILE))
    assert filesystem.statistics().free_files == 0
    root.rmdir(b"2")
    root.create(b"3", FILE)


def test_a_file_with_two_names_keeps_its_room() -> None:
    filesystem = memory(256 * KiB)
    root = filesystem.root()
    file = root.create(b"1", FILE)
    file.write(0, [b"x" * 5000])
    root.link(b"2", file)
    root.remove(b"1")
    assert content(file) == b"x" * 5000
    assert filesystem.statistics().free_bytes == 256 * KiB - 2 * PAGE_BYTES


# Several users at once.


def test_buffers_stay_as_they_were_read_after_the_file_has_changed_and_gone() -> None:
    root = memory().root()
    file = root.create(b"file", FILE)
    data = bytes(range(256)) * 1024
    file.write(0, [data])
    buffers, _ = file.read(0, len(data))
    file.write(1000, [b"overwritten"])
    file.write(CHUNK_BYTES, [bytes(CHUNK_BYTES)])
    file.set_attributes(SetAttributes(size=10))
    root.remove(b"file")
    assert text(buffers) == data


def test_readers_see_whole_writes_while_threads_write() -> None:
    """Every read finds one writer's bytes only, because a write is one step."""
    file = memory().root().create(b"file", FILE)
    size = 3 * CHUNK_BYTES
    file.write(0, [b"a" * size])
    stop = threading.Event()
    torn: list[set[int]] = []

    def write(letter: bytes) -> None:
        while not stop.is_set():
            file.write(0, [letter * size])

    def read() -> None:
        for _ in range(100):
            found = set(text(file.read(0, size)[0]))
            if len(found) != 1:
                torn.append(found)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in (b"b", b"c")]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in writers + readers:
        thread.start()
    for thread in readers:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert not torn


def test_threads_make_and_remove_without_losing_count() -> None:
    filesystem = memory()
    root = filesystem.root()

    def work(number: int) -> None:
        for turn in range(300):
            name = b"%d-%d" % (number, turn)
            root.create(name, FILE).write(0, [b"x" * 5000])
            if turn % 3:
                root.rename(name, root, b"moved-" + name)
                root.remove(b"moved-" + name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names(root)) == 4 * 100
    total = filesystem.statistics()
    assert total.total_bytes - total.free_bytes == 4 * 100 * 2 * PAGE_BYTES
    assert total.total_files - total.free_files == 4 * 100 + 1


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 60), max_size=120), st.integers(1, 20))
def test_cookies_order_a_directory_by_arrival(script: list[int], page: int) -> None:
    """A number toggles its name: the listing is what is there, in the order in which it came."""
    root = memory().root()
    model: dict[bytes, None] = {}
    for number in script:
        name = b"%d" % number
        if name in model:
            del model[name]
            root.remove(name)
        else:
            model[name] = None
            root.create(name, FILE)
    assert names(root, page) == list(model)
