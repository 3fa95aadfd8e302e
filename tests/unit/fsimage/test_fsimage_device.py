"""Block devices: what is written is read, nothing beyond the end, host errors are VfsErrors."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from appliance import image_limits
from appliance.fsimage import in_use
from appliance.fsimage.device import BlockDevice, FileDevice, Overlay, Slice
from appliance.fsimage.errors import ImageError
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.damage import MemoryDevice

CONTENTS = bytes(index * 13 >> 2 & 0xFF for index in range(100_000))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(CONTENTS)
    return path


def test_a_file_is_read(image: Path) -> None:
    device = FileDevice(image)
    assert device.size == len(CONTENTS)
    assert device.read_only
    assert device.read(99_000, 1000) == CONTENTS[99_000:]
    first, second = bytearray(10), bytearray(5000)
    device.readinto(70, [first, second])
    assert bytes(first + second) == CONTENTS[70:5080]
    device.close()


def test_more_views_than_one_call_takes(image: Path) -> None:
    views = [bytearray(7) for _ in range(3000)]
    device = FileDevice(image)
    device.readinto(5, views)
    assert b"".join(views) == CONTENTS[5 : 5 + 21_000]
    device.close()


def test_a_file_is_written(image: Path) -> None:
    device = FileDevice(image, read_only=False)
    device.write(10, [b"abc", bytearray(b"def"), memoryview(b"")])
    device.write(1000, [b"x"] * 3000)
    device.flush()
    assert device.read(9, 8) == CONTENTS[9:10] + b"abcdef" + CONTENTS[16:17]
    device.close()
    assert image.read_bytes()[1000:4000] == b"x" * 3000


def test_who_removes_an_image_that_is_written_is_told(
    image: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = FileDevice(image)
    os.rename(image, tmp_path / "elsewhere")
    reader.close()
    device = FileDevice(tmp_path / "elsewhere", read_only=False)
    os.rename(tmp_path / "elsewhere", image)
    device.close()
    assert not caplog.text
    device = FileDevice(image, read_only=False)
    image.unlink()
    device.close()
    assert f"{image} was removed: what was written to it is gone" in caplog.text


@pytest.mark.parametrize("offset", [-1, 99_999, 1 << 70])
def test_beyond_the_end_is_an_io_error(image: Path, offset: int) -> None:
    device = FileDevice(image, read_only=False)
    uses: list[Callable[[], object]] = [
        lambda: device.read(offset, 2),
        lambda: device.readinto(offset, [bytearray(2)]),
        lambda: device.write(offset, [b"ab"]),
        lambda: Slice(device, offset, 2),
        lambda: Slice(device, 0, 1000).read(offset, 2),
        lambda: Overlay(device).write(offset, [b"ab"]),
    ]
    for use in uses:
        with pytest.raises(VfsError) as caught:
            use()
        assert caught.value.code is Code.IO
    device.close()


def test_a_file_that_became_shorter_is_an_io_error(image: Path) -> None:
    device = FileDevice(image)
    os.truncate(image, 10)
    with pytest.raises(VfsError, match="shorter") as caught:
        device.read(5, 10)
    assert caught.value.code is Code.IO
    device.close()


def test_only_a_read_that_waits_says_so(image: Path) -> None:
    waits: list[str] = []
    device = FileDevice(image, about_to_wait=lambda: waits.append("wait"))
    device.read(0, 8192)
    assert not waits
    handle = os.open(image, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)
    assert device.read(0, 8192) == CONTENTS[:8192]
    assert len(waits) == 1
    device.close()


def test_a_host_that_cannot_say_whether_it_would_wait(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.preadv

    def refuses(fd: int, buffers: Sequence[bytearray], offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(95, "Operation not supported")
        return really(fd, buffers, offset)

    device = FileDevice(image, about_to_wait=lambda: pytest.fail("nobody has to wait"))
    monkeypatch.setattr(os, "preadv", refuses)
    assert device.read(3, 4) == CONTENTS[3:7]
    device.close()


def test_an_error_of_the_host_is_an_io_error(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    device = FileDevice(image, read_only=False)
    for call in ("preadv", "pwritev", "fdatasync"):
        monkeypatch.setattr(os, call, fails)
    uses: list[Callable[[], object]] = [
        lambda: device.read(0, 1),
        lambda: device.write(0, [b"x"]),
        device.flush,
    ]
    for use in uses:
        with pytest.raises(VfsError, match="Input/output") as caught:
            use()
        assert caught.value.code is Code.IO
    device.close()


def test_a_full_host_is_told_as_such(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    device = FileDevice(image, read_only=False)
    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(VfsError) as caught:
        device.write(0, [b"x"])
    assert caught.value.code is Code.NOSPC
    device.close()


def test_one_writer_or_many_readers(image: Path) -> None:
    first, second = FileDevice(image), FileDevice(image)
    with pytest.raises(ImageError, match="in use"):
        FileDevice(image, read_only=False)
    first.close()
    second.close()
    writer = FileDevice(image, read_only=False)
    with pytest.raises(ImageError, match="written to"):
        FileDevice(image)
    with pytest.raises(ImageError, match="in use"):
        FileDevice(image, read_only=False)
    writer.close()
    FileDevice(image).close()


def test_what_the_kernel_has_open(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop = tmp_path / "block" / "loop7"
    (loop / "loop").mkdir(parents=True)
    (loop / "loop" / "backing_file").write_text(f"{image}\n")
    (loop / "ro").write_text("1\n")
    monkeypatch.setattr(in_use, "_BLOCK_DEVICES", tmp_path / "block")
    FileDevice(image).close()
    assert not caplog.text
    (loop / "ro").write_text("0\n")
    FileDevice(image).close()
    assert "also in use, as /dev/loop7" in caplog.text
    with pytest.raises(ImageError, match="as /dev/loop7"):
        FileDevice(image, read_only=False)


def test_a_host_without_locks(
    image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    FileDevice(image).close()
    assert "No locks available" in caplog.text
    with pytest.raises(ImageError, match="cannot lock"):
        FileDevice(image, read_only=False)


def test_what_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        FileDevice(tmp_path / "nothing")
    with pytest.raises(ImageError, match="neither a file") as caught:
        FileDevice(tmp_path)
    assert "--directory" in caught.value.hint


def test_a_slice_is_a_part(image: Path) -> None:
    part = Slice(FileDevice(image, read_only=False), 1000, 500)
    assert part.size == 500
    assert part.read(490, 10) == CONTENTS[1490:1500]
    with pytest.raises(VfsError):
        part.read(490, 11)
    part.write(499, [b"!"])
    part.flush()
    buffer = bytearray(2)
    part.readinto(498, [buffer])
    assert buffer == CONTENTS[1498:1499] + b"!"
    part.close()
    assert image.read_bytes() == CONTENTS[:1499] + b"!" + CONTENTS[1500:]


WRITES = some.lists(some.tuples(some.integers(0, 9000), some.binary(max_size=3000)), max_size=6)


@given(WRITES, some.integers(0, 9000), some.integers(1, 3000), some.sampled_from([512, 1024, 4096]))
def test_an_overlay_is_like_a_copy(
    writes: list[tuple[int, bytes]], offset: int, count: int, block_bytes: int
) -> None:
    base = CONTENTS[:12_345]
    copy = bytearray(base)
    overlay = Overlay(MemoryDevice(base), block_bytes)
    for at, data in writes:
        overlay.write(at, [data[: len(data) // 2], data[len(data) // 2 :]])
        copy[at : at + len(data)] = data
    assert overlay.read(offset, count) == copy[offset : offset + count]
    first, second = bytearray(count // 3), bytearray(count - count // 3)
    overlay.readinto(offset, [first, second])
    assert first + second == copy[offset : offset + count]
    merged = bytearray(base)
    for at, block in overlay.changes():
        merged[at : at + len(block)] = block
    assert merged == copy


def test_an_overlay_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "OVERLAY_BYTES_MAX", 8192)
    overlay = Overlay(MemoryDevice(bytes(100_000)), 4096)
    overlay.write(0, [bytes(8192)])
    with pytest.raises(VfsError) as caught:
        overlay.write(8192, [b"x"])
    assert caught.value.code is Code.NOSPC


def test_devices_keep_the_protocol(image: Path) -> None:
    file = FileDevice(image)
    devices: list[BlockDevice] = [file, Slice(file, 0, 10), Overlay(file), MemoryDevice(b"")]
    assert [device.read_only for device in devices] == [True, True, False, True]
    file.close()
