"""Partition tables: those that sfdisk writes are read, those that make no sense are refused."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.image import open_image
from appliance.fsimage.partition import Partition, read_partitions
from tests.unit.fsimage.damage import MemoryDevice
from tests.unit.fsimage.ext4_images import make_image, run

MiB = 1 << 20


def disk(path: Path, table: str, size: str = "32M") -> Path:
    run(["truncate", "-s", size, path])
    run(["sfdisk", "-q", path], said=table)
    return path


def read(path: Path) -> list[Partition]:
    device = FileDevice(path)
    found = read_partitions(device)
    device.close()
    return found


def places(partitions: list[Partition]) -> list[tuple[int, int, int]]:
    return [(each.number, each.first, each.size) for each in partitions]


def test_mbr(tmp_path: Path) -> None:
    table = "label: dos\nstart=2048, size=2048, type=83\nstart=8192, size=4096, type=82\n"
    found = read(disk(tmp_path / "disk", table))
    assert places(found) == [(1, MiB, MiB), (2, 4 * MiB, 2 * MiB)]
    assert [each.type for each in found] == ["Linux", "Linux swap"]


def test_mbr_with_logical_partitions(tmp_path: Path) -> None:
    table = """label: dos
start=2048, size=2048, type=83
start=6144, size=32768, type=5
start=8192, size=2048, type=83
start=12288, size=4096, type=83
start=20480, size=2048, type=83
"""
    found = read(disk(tmp_path / "disk", table))
    assert places(found) == [
        (1, MiB, MiB),
        (5, 4 * MiB, MiB),
        (6, 6 * MiB, 2 * MiB),
        (7, 10 * MiB, MiB),
    ]


GPT = 'label: gpt\nstart=2048, size=2048, name="first part"\nstart=8192, size=4096, type=S\n'


def test_gpt(tmp_path: Path) -> None:
    found = read(disk(tmp_path / "disk", GPT))
    assert places(found) == [(1, MiB, MiB), (2, 4 * MiB, 2 * MiB)]
    assert [str(each) for each in found] == ['1: 1 MiB, Linux "first part"', "2: 2 MiB, Linux swap"]


def test_gpt_with_sectors_of_4096_bytes(caplog: pytest.LogCaptureFixture) -> None:
    raw = bytearray(64 * 4096)
    raw[510:512] = b"\x55\xaa"
    struct.pack_into("<B3xB3xII", raw, 446, 0, 0xEE, 1, 63)
    kind = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
    entries = struct.pack("<16s16sQQQ72s", kind, b"g" * 16, 16, 31, 0, b"")
    raw[2 * 4096 : 2 * 4096 + len(entries)] = entries
    raw[4096 : 4096 + 92] = gpt_header(1, 2, 1, zlib.crc32(entries))
    assert places(read_partitions(MemoryDevice(raw))) == [(1, 16 * 4096, 16 * 4096)]
    assert not caplog.text  # nothing is wrong with it
    raw[-4096 : -4096 + 92] = gpt_header(63, 2, 1, zlib.crc32(entries))
    raw[4096 + 16] ^= 1
    assert places(read_partitions(MemoryDevice(raw))) == [(1, 16 * 4096, 16 * 4096)]
    assert "using the backup GPT header (first: wrong checksum)" in caplog.text


def gpt_header(my_lba: int, entries_lba: int, count: int, entries_crc: int) -> bytes:
    def packed(crc: int) -> bytes:
        return struct.pack(
            "<8sIII4xQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, crc, my_lba, 0, 0, 0, b"", entries_lba, count, 128),
            entries_crc,
        )

    return packed(zlib.crc32(packed(0)))


@pytest.mark.parametrize("at", [512 + 8, 512 + 16, 512 + 72, 1024 + 32, 1024 + 100])
def test_a_damaged_gpt_is_read_from_its_copy(tmp_path: Path, at: int) -> None:
    path = disk(tmp_path / "disk", GPT)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    assert len(read_partitions(MemoryDevice(raw))) == 2
    raw[-512:] = bytes(512)
    with pytest.raises(ImageError, match="no GPT header is sound"):
        read_partitions(MemoryDevice(raw))


# --- hostile tables ----------------------------------------------------------


def mbr(*entries: tuple[int, int, int], size: int = MiB) -> bytearray:
    raw = bytearray(size)
    put_table(raw, 0, *entries)
    return raw


def put_table(raw: bytearray, sector: int, *entries: tuple[int, int, int]) -> None:
    at = sector * 512
    raw[at + 510 : at + 512] = b"\x55\xaa"
    for index, (kind, first, count) in enumerate(entries):
        struct.pack_into("<B3xB3xII", raw, at + 446 + 16 * index, 0, kind, first, count)


def refused(raw: bytearray, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        read_partitions(MemoryDevice(raw))


def test_a_partition_beyond_the_end() -> None:
    refused(mbr((0x83, 100, 0xFFFFFFFF)), "beyond the end")
    refused(mbr((0x83, 0xFFFFFFFF, 1)), "beyond the end")


def test_partitions_that_overlap() -> None:
    refused(mbr((0x83, 100, 100), (0x83, 199, 10)), "1 and 2 overlap")
    assert len(read_partitions(MemoryDevice(mbr((0x83, 100, 100), (0x83, 200, 10))))) == 2


def test_a_chain_that_loops() -> None:
    raw = mbr((0x05, 100, 1000))
    put_table(raw, 100, (0x83, 1, 10), (0x05, 50, 20))
    put_table(raw, 150, (0x83, 1, 10), (0x05, 50, 20))
    refused(raw, "has no end")


def test_a_chain_without_end() -> None:
    raw = mbr((0x05, 1, 2000))
    for sector in range(1, 1999):
        put_table(raw, sector, (0, 0, 0), (0x05, sector, 1))
    refused(raw, "has no end")


def test_a_chain_that_leaves_the_image() -> None:
    raw = mbr((0x05, 100, 1000))
    put_table(raw, 100, (0x83, 1, 10), (0x05, 0xFFFFFFF0, 20))
    refused(raw, "leaves the image")


def test_a_chain_into_nothing() -> None:
    refused(mbr((0x05, 100, 1000)), "is broken")


def test_two_chains() -> None:
    raw = mbr((0x05, 100, 100), (0x0F, 300, 100))
    put_table(raw, 100, (0x83, 1, 10))
    put_table(raw, 300, (0x83, 1, 10))
    refused(raw, "two extended")


def test_a_gpt_that_claims_too_much() -> None:
    raw = mbr((0xEE, 1, 100))
    raw[512 : 512 + 92] = gpt_header(1, 2, 1 << 30, 0)
    refused(raw, "1073741824 entries")


def test_what_has_no_table() -> None:
    for raw in (b"", bytes(511), bytes(100_000), b"\x55\xaa" * 4000):
        assert read_partitions(MemoryDevice(raw)) == []


@settings(deadline=None)
@given(some.binary(min_size=64, max_size=64), some.binary(max_size=1024))
def test_any_table_is_read_or_refused(table: bytes, rest: bytes) -> None:
    raw = bytearray(64 * 1024)
    raw[446:510], raw[510:512] = table, b"\x55\xaa"
    raw[512 : 512 + len(rest)] = rest
    try:
        found = read_partitions(MemoryDevice(raw))
    except ImageError:
        return
    assert all(0 <= each.first < each.first + each.size <= len(raw) for each in found)


# --- through open_image ------------------------------------------------------


@pytest.fixture
def whole_disk(tmp_path: Path) -> Path:
    path = disk(tmp_path / "disk", GPT)
    partition = make_image(tmp_path / "part", "2M", "-t", "ext4")
    run(["dd", f"if={partition}", f"of={path}", "bs=1M", "seek=4", "conv=notrunc", "status=none"])
    return path


def test_a_whole_disk_names_its_partitions(whole_disk: Path) -> None:
    with pytest.raises(ImageError, match='1: 1 MiB, Linux "first part"; 2: 2 MiB') as caught:
        open_image(str(whole_disk))
    assert "partition=1" in caught.value.hint


def test_a_partition_is_opened(whole_disk: Path) -> None:
    filesystem = open_image(str(whole_disk), partition=2)
    assert filesystem.root().lookup(b"lost+found").attributes().mode == 0o700
    filesystem.close()


def test_a_partition_that_is_not_there(whole_disk: Path) -> None:
    with pytest.raises(ImageError, match="no partition 3, only 1: "):
        open_image(str(whole_disk), partition=3)
    with pytest.raises(ImageError, match="none of the file systems"):
        open_image(str(whole_disk), partition=1)


def test_a_partition_of_what_has_none(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "2M", "-t", "ext4")
    with pytest.raises(ImageError, match="no partition table"):
        open_image(str(image), partition=1)
