"""What is written to files can be read again, whatever else happens to them: in the middle of a
race, on a full disk, and after a crash."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from appliance import image_limits
from appliance.fsimage.ext4 import content, map_changes
from appliance.fsimage.ext4.cache import Cache
from appliance.fsimage.ext4.extents import Extent
from appliance.fsimage.ext4.filesystem import Ext4
from appliance.fsimage.ext4.node import Ext4Node
from appliance.fsimage.ext4.operation import Operation
from appliance.limits import KiB, MiB
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Attributes, FileType, NewNode
from tests.unit.fsimage.ext4_disk import EXT4, Disk, everything, physical, raises, resize
from tests.unit.fsimage.ext4_images import debugfs, e2fsck


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "image")
    yield disk
    disk.check()
    disk.filesystem.close()


# --- races ------------------------------------------------------------------------------


def test_a_file_that_is_cut_off_while_it_is_written(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"old " * 5000])
    disk.device.meanwhile = lambda: resize(node, 10)
    node.write(12_000, [b"new " * 100])
    assert everything(node) == (b"old " * 5)[:10].ljust(12_000, b"\0") + b"new " * 100


def test_a_file_that_is_cut_off_where_it_is_written(disk: Disk) -> None:
    """In the very block, which stays in the file: what was written before counts, or not at all;
    what is written after, does."""
    node = disk.node()
    node.write(0, [b"x" * 1000])
    disk.device.meanwhile = lambda: resize(node, 100)
    node.write(500, [b"y" * 10])
    assert everything(node) == b"x" * 100 + bytes(400) + b"y" * 10


def test_two_who_fill_the_same_hole(disk: Disk) -> None:
    node = disk.node()
    disk.device.meanwhile = lambda: node.write(300, [b"second"])
    node.write(100, [b"first"])
    assert everything(node) == bytes(100) + b"first" + bytes(195) + b"second"
    assert node.attributes().used == KiB


def test_two_who_write_behind_the_end(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 100])
    disk.device.meanwhile = lambda: node.write(100, [b"appended"])
    node.write(5000, [b"far"])
    assert everything(node) == (b"x" * 100 + b"appended").ljust(5000, b"\0") + b"far"


def test_a_block_that_two_write_for_the_first_time(disk: Disk) -> None:
    node = disk.node()
    content.allocate(node, 0, 8 * KiB)
    disk.device.meanwhile = lambda: node.write(2000, [b"second"])
    node.write(1024, [b"12345678" * 256])
    expected = bytearray(8 * KiB)
    expected[1024:3072] = b"12345678" * 256
    assert everything(node) == expected


def test_two_who_write_parts_of_a_block_for_the_first_time(disk: Disk) -> None:
    """The zeros around what one of them writes do not come over what the other one has written."""
    node = disk.node()
    content.allocate(node, 0, 8 * KiB)
    other = threading.Thread(target=lambda: node.write(2000, [b"second"]))

    def meanwhile() -> None:
        other.start()
        other.join(0.2)  # it has to wait, and is given the time not to

    disk.device.meanwhile = meanwhile
    node.write(1030, [b"first"])
    other.join()
    expected = bytearray(8 * KiB)
    expected[1030:1035] = b"first"
    expected[2000:2006] = b"second"
    assert everything(node) == expected


def test_a_file_that_is_removed_while_it_is_written(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 5000])
    disk.device.meanwhile = lambda: disk.filesystem.root().remove(b"f")
    raises(Code.STALE, lambda: node.write(2000, [b"y" * 50_000]))


def test_blocks_on_their_way_to_the_disk_belong_to_nobody_else(disk: Disk) -> None:
    """The blocks are freed, and that is durable, while the data for them is still on its way."""
    node, other = disk.node(), disk.node(b"g")
    node.write(0, [b"x" * 100_000])
    disk.filesystem.commit()
    free = disk.filesystem.writer.allocator.available_blocks(privileged=False)
    length = (free - 8) * KiB  # its map needs some, too

    def meanwhile() -> None:
        resize(node, 0)
        disk.filesystem.commit()
        written = other.write(0, [b"o" * length])
        assert written == length

    disk.device.meanwhile = meanwhile
    assert node.write(0, [b"y" * 100_000]) == 100_000
    assert everything(node) == b"y" * 100_000
    assert everything(other) == b"o" * length


# --- the end of a file --------------------------------------------------------------------


def put_behind_end(disk: Disk, node: Ext4Node) -> None:
    """As a crash leaves it: data that was written, of which the file never knew."""
    size = node.attributes().size
    at = (physical(node, size // KiB) * KiB) + size % KiB
    disk.device.write(at, [b"stale" * 20])


def test_a_file_that_grows_has_zeros_behind_its_old_end(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 700])
    put_behind_end(disk, node)
    resize(node, 5000)
    assert everything(node) == (b"x" * 700).ljust(5000, b"\0")


@pytest.mark.parametrize("offset", [710, 1000, 1024, 5000])
def test_a_gap_behind_the_old_end_has_zeros(disk: Disk, offset: int) -> None:
    node = disk.node()
    node.write(0, [b"x" * 700])
    put_behind_end(disk, node)
    node.write(offset, [b"y"])
    assert everything(node) == (b"x" * 700).ljust(offset, b"\0") + b"y"


def test_storage_behind_the_old_end_has_zeros(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 700])
    put_behind_end(disk, node)
    content.allocate(node, 2000, 3000)
    assert everything(node) == (b"x" * 700).ljust(3000, b"\0")


def truncate_and_write(node: Ext4Node) -> None:
    resize(node, 1500)
    node.write(2040, [b"y"])


def truncate_and_extend(node: Ext4Node) -> None:
    resize(node, 1500)
    resize(node, 9999)


CUTS: dict[str, Callable[[Ext4Node], object]] = {
    "truncate": lambda node: resize(node, 1500),
    "truncate and write": truncate_and_write,
    "truncate and extend": truncate_and_extend,
    "punch": lambda node: content.punch(node, 1500, 3500),
    "punch in one block": lambda node: content.punch(node, 1500, 1600),
}


@pytest.mark.parametrize("name", CUTS)
def test_what_is_cut_off_is_there_again_after_a_crash(disk: Disk, name: str) -> None:
    """Before the transaction is durable the file is what it was, to the byte; and then what it
    is."""
    node = disk.node()
    before = Random(name).randbytes(5000)
    node.write(0, [before])
    disk.filesystem.commit()
    CUTS[name](node)
    crashed = disk.after_crash()
    assert everything(crashed.root().lookup(b"f")) == before
    crashed.close()
    disk.filesystem.commit()
    crashed = disk.after_crash()
    assert everything(crashed.root().lookup(b"f")) == everything(node) != before
    crashed.close()


def test_a_clean_end_costs_nothing(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 700])
    block = physical(node, 0)
    node.write(900, [b"y"])
    resize(node, 5000)
    content.punch(node, 710, 890)
    assert physical(node, 0) == block


# --- little space ---------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "image", "4M", (*EXT4, "-J", "size=1", "-m", "10"))
    node = disk.node()
    rng = Random(1)
    data = rng.randbytes(100_000)
    written = 0
    while (done := node.write(written, [data])) == len(data):
        written += done
    written += done
    assert 0 < done < len(data) and written % KiB == 0
    raises(Code.NOSPC, lambda: node.write(written, [data]))
    raises(Code.NOSPC, lambda: disk.node(b"g").write(0, [b"x"]))
    statistics = disk.filesystem.statistics()
    assert statistics.free_bytes >= disk.filesystem.volume.superblock.reserved_blocks * KiB
    assert statistics.available_bytes < 100 * KiB
    assert everything(node)[:written] == (data * 50)[:written]
    node.write(1000, [b"in place"])
    resize(node, 1500)  # which needs a block, and gets one
    assert disk.node(b"g").write(0, [data]) == len(data)  # what was freed is there at once
    disk.check()
    disk.filesystem.close()


def test_a_hole_cannot_be_filled_on_a_full_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "image", "4M", (*EXT4, "-J", "size=1"))
    node = disk.node()
    free = disk.filesystem.writer.allocator.available_blocks(privileged=False)
    raises(Code.NOSPC, lambda: content.allocate(node, 0, (free + 1) * KiB))
    assert not node.attributes().used and not node.attributes().size
    content.allocate(node, 0, free * KiB)
    raises(Code.NOSPC, lambda: disk.node(b"g").write(0, [b"x"]))
    assert node.write(0, [b"y" * (free * KiB)]) == free * KiB  # that was what it is for
    disk.check()
    disk.filesystem.close()


def test_a_disk_that_fails_takes_nothing(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 1000])

    def fail() -> None:
        raise VfsError(Code.IO, "no disk")

    disk.device.meanwhile = fail
    raises(Code.IO, lambda: node.write(1000, [b"y" * 50_000]))
    assert everything(node) == b"x" * 1000


def test_a_disk_that_fails_does_not_stop_who_waits_for_it(disk: Disk) -> None:
    """Who waits until nothing touches the device has the lock, which the failed write needs to give
    its blocks back."""
    node, transfers = disk.node(), disk.filesystem.volume.transfers
    locked = threading.Event()

    def wait() -> None:
        with disk.filesystem.lock:
            locked.set()
            transfers.wait_until_quiet()

    waiting = threading.Thread(target=wait, daemon=True)

    def fail() -> None:
        waiting.start()
        assert locked.wait(60)
        raise VfsError(Code.IO, "no disk")

    disk.device.meanwhile = fail
    writing = threading.Thread(
        target=raises, args=(Code.IO, lambda: node.write(0, [b"y" * 50_000])), daemon=True
    )
    writing.start()
    writing.join(60)
    assert not writing.is_alive()
    waiting.join(60)
    assert not waiting.is_alive()


def test_a_transaction_is_closed_without_reading(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the thread that does it does not fail."""
    node, volume = disk.node(), disk.filesystem.volume
    node.write(0, [b"x" * 10_000])

    def fail(*_: object) -> bytes:
        raise VfsError(Code.IO, "no disk")

    with monkeypatch.context() as patch:
        patch.setattr(volume, "_blocks", Cache(1000, len))
        patch.setattr(disk.device, "read", fail)
        disk.filesystem.commit()
    assert not disk.filesystem.read_only


@pytest.mark.parametrize("kind", ["ext4", "ext3"])
def test_the_largest_file(tmp_path: Path, kind: str) -> None:
    disk = Disk(tmp_path / "image", options=("-t", kind, "-b", "1024"))
    node = disk.node()
    largest = content.size_max(disk.filesystem, node.inode)
    assert largest > 16 << 30
    node.write(largest - 3, [b"end"])
    raises(Code.FBIG, lambda: node.write(largest - 2, [b"end"]))
    raises(Code.FBIG, lambda: resize(node, largest + 1))
    assert b"".join(node.read(largest - 5, 100)[0]) == b"\0\0end"
    disk.check()
    disk.filesystem.close()


# --- many pieces ------------------------------------------------------------------------------


def checkered(node: Ext4Node, blocks: int) -> bytearray:
    """Every second block of a file, from its end to its start; what is in it then."""
    for logical in range(blocks - 1, -1, -2):
        node.write(logical * KiB, [b"%04d" % logical * 256])
    return bytearray(everything(node))


def operations(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> list[Operation]:
    """All that are begun from now on."""
    begun: list[Operation] = []
    real = Ext4.change

    def counted(self: Ext4, act: Callable[[Operation], object]) -> object:
        def noted(operation: Operation) -> object:
            begun.append(operation)
            return act(operation)

        return real(self, noted)

    monkeypatch.setattr(Ext4, "change", counted)
    return begun


def test_a_write_of_many_pieces_takes_several_operations(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_limits, "EXTENTS_CHANGED_MAX", 8)
    node = disk.node()
    expected = checkered(node, 60)
    begun = operations(disk, monkeypatch)
    data = Random(2).randbytes(59_000)
    assert node.write(500, [data[:7], data[7:30_000], data[30_000:]]) == len(data)
    expected[500:59_500] = data
    assert everything(node) == expected
    assert len(begun) == 8


def test_a_write_that_fails_half_way_says_how_far_it_came(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_limits, "EXTENTS_CHANGED_MAX", 8)
    node = disk.node()
    expected = checkered(node, 60)
    real = Ext4.change
    left = [3]

    def failing(self: Ext4, act: Callable[[Operation], object]) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise VfsError(Code.NOSPC)
        return real(self, act)

    monkeypatch.setattr(Ext4, "change", failing)
    data = Random(2).randbytes(60_000)
    assert node.write(0, [data]) == 24 * KiB
    found = everything(node)
    assert found[: 24 * KiB] == data[: 24 * KiB]
    # What was there in the portion that failed was overwritten before it failed.
    assert found[24 * KiB : 25 * KiB] == bytes(KiB)
    assert found[32 * KiB :] == expected[32 * KiB :]
    monkeypatch.undo()


def test_a_long_truncation_is_finished_after_a_crash(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_limits, "EXTENTS_CHANGED_MAX", 8)
    node = disk.node()
    expected = checkered(node, 100)
    used = node.attributes().used
    states: list[Attributes] = []
    real = content._free_behind

    def watched(filesystem: Ext4, operation: Operation, *rest: object) -> bool:
        if filesystem is disk.filesystem and len(states) < 3:
            filesystem.commit()
            crashed = disk.after_crash()
            states.append(crashed.root().lookup(b"f").attributes())
            crashed.close()
            e2fsck(disk.image.with_suffix(".crashed"))
        return real(filesystem, operation, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(content, "_free_behind", watched)
    begun = operations(disk, monkeypatch)
    resize(node, 1500)
    assert len(begun) > 5
    assert everything(node) == expected[:1500]
    assert node.attributes().used < used // 10
    assert not disk.filesystem.orphans.numbers
    assert [state.size for state in states] == [len(expected), 1500, 1500]
    assert states[-1].used == node.attributes().used


def test_a_truncation_that_the_kernel_began_is_finished(tmp_path: Path) -> None:
    """It has the new size and is on the list of orphans, and no more was done."""
    disk = Disk(tmp_path / "image")
    node = disk.node()
    node.write(0, [b"x" * 50_000])
    number = node.inode.number
    disk.filesystem.close()
    debugfs(
        disk.image,
        "set_inode_field f size 1500",
        "set_inode_field f dtime 0",
        f"set_super_value last_orphan {number}",
    )
    disk.open()
    node = disk.node()
    assert everything(node) == b"x" * 1500
    assert node.attributes().used == 2 * KiB
    block = disk.device.read(physical(node, 1) * KiB, KiB)
    assert block == b"x" * 476 + bytes(548)
    disk.check()
    disk.filesystem.close()


def test_a_file_in_very_many_groups_is_removed(tmp_path: Path) -> None:
    """One extent may reach into a dozen of them, and each has a bitmap in the transaction."""
    options = ("-t", "ext4", "-b", "1024", "-g", "256", "-J", "size=1", "-O", "^resize_inode")
    disk = Disk(tmp_path / "image", "96M", options)
    content.allocate(disk.node(), 0, 72 << 20)
    disk.filesystem.root().remove(b"f")
    disk.filesystem.commit()
    disk.check()
    disk.filesystem.close()


def test_a_file_that_is_written_from_start_to_end_is_one_piece(disk: Disk) -> None:
    node, other = disk.node(), disk.node(b"g")
    for number in range(60):
        node.write(number * 64 * KiB, [bytes([number + 1]) * (64 * KiB)])
    assert len(node.block_map.extents(0, 60 * 64)) == 1
    resize(node, 0)
    for number in range(60):
        node.write(number * 64 * KiB, [bytes([number + 1]) * (64 * KiB)])
        other.write(number * 64 * KiB, [bytes([number + 101]) * (64 * KiB)])
    for each in (node, other):
        assert len(each.block_map.extents(0, 60 * 64)) <= 12


# --- what else there is -------------------------------------------------------------------------


def test_no_extent_is_longer_than_one_that_is_written_can_be(tmp_path: Path) -> None:
    """Its length would be that of one that is not."""
    disk = Disk(tmp_path / "image", "48M")
    filesystem, number = disk.filesystem, disk.node().inode.number

    def act(operation: Operation) -> None:
        changer = map_changes.of(filesystem.maps, operation, operation.inode(number))
        for logical, count in ((0, 20_000), (20_000, 12_768), (32_768, 10)):
            changer.insert(logical, 2000 + logical, count)
        assert changer.find(0) == Extent(0, 32_768, 2000)
        assert changer.find(32_770) == Extent(32_768, 10, 2000 + 32_768)
        raise VfsError(Code.IO, "nobody has these blocks")

    raises(Code.IO, lambda: filesystem.change(act))
    disk.check()
    disk.filesystem.close()


def test_data_and_holes_are_found(disk: Disk) -> None:
    node = disk.node()
    node.write(2048, [b"x" * 2000])
    content.allocate(node, 8000, 9000)
    resize(node, 20_000)
    seek = content.seek
    assert seek(node, 0, data=True) == 2048
    assert seek(node, 3000, data=True) == 3000
    assert seek(node, 4096, data=True) is None
    assert seek(node, 0, data=False) == 0
    assert seek(node, 2100, data=False) == 4096
    assert seek(node, 9000, data=False) == 9000
    node.write(19_000, [b"y" * 1000])
    assert seek(node, 19_500, data=False) == 20_000
    assert seek(node, 20_000, data=False) is None


def test_storage_reads_as_zeros_until_it_is_written(disk: Disk) -> None:
    node = disk.node()
    content.allocate(node, 0, 100 * KiB)
    assert node.attributes().used == 100 * KiB
    assert everything(node) == bytes(100 * KiB)
    node.write(5000, [b"x" * 2000])
    assert everything(node) == bytes(5000) + b"x" * 2000 + bytes(100 * KiB - 7000)
    assert node.attributes().used == 100 * KiB


def test_a_hole_gives_storage_back(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 100_000])
    used = node.attributes().used
    content.punch(node, 1000, 99_000)
    assert used - node.attributes().used == 95 * KiB
    assert everything(node) == b"x" * 1000 + bytes(98_000) + b"x" * 1000
    before = node.attributes()
    content.punch(node, 200_000, 300_000)
    assert node.attributes().size == before.size


def test_a_removed_file_gives_storage_back(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "EXTENTS_CHANGED_MAX", 8)
    before = disk.filesystem.statistics()
    root = disk.filesystem.root()
    node = root.create(b"new", NewNode(FileType.REGULAR, 0o644, 0, 0))
    assert isinstance(node, Ext4Node)
    checkered(node, 100)
    root.remove(b"new")
    assert disk.filesystem.statistics() == before
    raises(Code.STALE, lambda: node.write(0, [b"x"]))
    raises(Code.STALE, lambda: node.read(0, 1))


@pytest.mark.parametrize("kind", ["ext4", "ext2"])
def test_the_text_of_a_long_link(tmp_path: Path, kind: str) -> None:
    disk = Disk(tmp_path / "image", options=("-t", kind, "-b", "1024"))
    text = b"t" * 900
    root = disk.filesystem.root()
    root.create(b"link", NewNode(FileType.SYMLINK, 0o777, 0, 0, target=text))
    assert root.lookup(b"link").readlink() == text
    disk.check()
    assert disk.node(b"link").readlink() == text
    disk.filesystem.root().remove(b"link")
    disk.check()
    disk.filesystem.close()


def test_times_and_the_change_attribute_go_on(disk: Disk) -> None:
    node = disk.node()
    before = node.attributes()
    node.write(0, [b"x"])
    between = node.attributes()
    node.write(0, [b"y"])
    after = node.attributes()
    assert before.change < between.change < after.change
    assert before.mtime_ns < between.mtime_ns <= after.mtime_ns


def test_what_was_read_stays_as_it_was(disk: Disk) -> None:
    node = disk.node()
    node.write(0, [b"x" * 10_000])
    buffers, _ = node.read(0, 10_000)
    node.write(0, [b"y" * 10_000])
    assert b"".join(buffers) == b"x" * 10_000


def test_a_host_without_space_is_a_disk_without_space(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sparse image on a full disk of the host."""
    node = disk.node()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.pwritev", full)
    raises(Code.NOSPC, lambda: node.write(0, [b"x" * MiB]))
    monkeypatch.undo()
    assert not node.attributes().size
