"""Compressed images: the same bytes as before, holes where there are zeros, and a clear word about
what cannot be."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from appliance import image_limits
from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.image import open_image
from appliance.fsimage.spool import compression, spool
from tests.unit.fsimage.ext4_images import make_image, sample_tree, view

MIB = 1 << 20
CONTENTS = (
    bytes(5 * 4096)
    + os.urandom(6000)
    + bytes(3 * MIB + 17)
    + b"x" * 100_000
    + bytes(2 * MIB)
    + b"the end"
)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress,
}


@pytest.fixture(params=COMPRESS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def opened(path: Path) -> FileDevice:
    device = FileDevice(path)
    return spool(device, compression(device))


def refused(path: Path, words: str) -> ImageError:
    with pytest.raises(ImageError, match=words) as caught:
        opened(path)
    FileDevice(path, read_only=False).close()  # it was let go
    return caught.value


def test_the_same_bytes_with_holes(kind: str, tmp_path: Path) -> None:
    """By magic: the name says nothing."""
    path = tmp_path / "image"
    path.write_bytes(COMPRESS[kind](CONTENTS))
    device = opened(path)
    assert device.size == len(CONTENTS)
    assert device.read_only
    assert device.read(0, device.size) == CONTENTS
    assert os.fstat(device._fd).st_blocks * 512 < MIB
    assert os.fstat(device._fd).st_nlink == 0
    device.close()


def test_zeros_at_the_end_count(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(COMPRESS[kind](b"x" + bytes(MIB)))
    assert opened(path).size == MIB + 1


def test_several_parts_in_one_file(kind: str, tmp_path: Path) -> None:
    """As pigz, pixz, pzstd and cat make them."""
    path = tmp_path / "image"
    parts = [CONTENTS[:70_000], b"", CONTENTS[70_000:]]
    path.write_bytes(b"".join(COMPRESS[kind](part) for part in parts))
    device = opened(path)
    assert device.read(0, device.size) == CONTENTS


@pytest.mark.parametrize("tool", ["gzip", "xz", "zstd"])
def test_what_the_programs_make(tool: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(CONTENTS)
    done = subprocess.run([tool, "-c", path], stdout=subprocess.PIPE, check=True)
    path.write_bytes(done.stdout)
    device = opened(path)
    assert device.read(0, device.size) == CONTENTS


def test_padding_after_xz(tmp_path: Path) -> None:
    path = tmp_path / "image"
    whole = lzma.compress(b"one") + bytes(8) + lzma.compress(b"two") + bytes(400_000)
    path.write_bytes(whole)
    assert opened(path).read(0, 6) == b"onetwo"


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_a_truncated_file(kind: str, tmp_path: Path, keep: float) -> None:
    path = tmp_path / "image"
    whole = COMPRESS[kind](os.urandom(300_000))
    path.write_bytes(whole[: int(len(whole) * keep)])
    refused(path, f"compressed with {kind}, and damaged: it ends in the middle")


def test_a_damaged_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    raw = bytearray(COMPRESS[kind](CONTENTS))
    raw[len(raw) // 2] ^= 0x40
    path.write_bytes(raw)
    refused(path, f"compressed with {kind}, and damaged")


def test_garbage_behind(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(COMPRESS[kind](CONTENTS) + b"garbage, and enough of it")
    assert "b'" not in str(refused(path, "damaged"))  # no bytes of Python


def test_more_than_we_spool(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_limits, "SPOOL_BYTES_MAX", MIB)
    path = tmp_path / "image"
    path.write_bytes(COMPRESS[kind](bytes(20 * MIB)))
    assert refused(path, "more than").hint == "decompress it yourself"


@pytest.mark.parametrize("kind", ["xz", "zstd"])
def test_more_memory_than_we_give(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file says it needs is not given to it, however small it is."""
    monkeypatch.setattr(image_limits, "SPOOL_MEMORY_MAX", MIB)
    path = tmp_path / "image"
    path.write_bytes(COMPRESS[kind](os.urandom(2 * MIB)))
    refused(path, "of memory")


def test_a_bomb_is_taken_in_small_pieces(tmp_path: Path) -> None:
    """512 MiB of zeros in some KiB, for each format, in less memory than that."""
    for kind, whole in (
        ("gzip", gzip.compress(bytes(64 * MIB)) * 8),
        ("xz", lzma.compress(bytes(64 * MIB)) * 8),
        ("zstd", COMPRESS["zstd"](bytes(64 * MIB)) * 8),
    ):
        (tmp_path / kind).write_bytes(whole)
    script = (
        "import resource, sys\n"
        "from appliance.fsimage.device import FileDevice\n"
        "from appliance.fsimage.spool import compression, spool\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
        "device = FileDevice(sys.argv[1])\n"
        "print(spool(device, compression(device)).size)\n"
    )
    for kind in COMPRESS:
        done = subprocess.run(
            [sys.executable, "-c", script, tmp_path / kind], capture_output=True, text=True
        )
        assert done.stdout == f"{1 << 29}\n", done.stderr


def test_a_full_disk(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "image"
    path.write_bytes(COMPRESS[kind](CONTENTS))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert "TMPDIR=" in refused(path, "no room").hint


def test_it_goes_to_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(gzip.compress(CONTENTS))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    device = opened(path)
    assert "/elsewhere/" in os.readlink(f"/proc/self/fd/{device._fd}")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_without_the_package_for_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(COMPRESS["zstd"](CONTENTS))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert "rumpnfsd[zstd]" in refused(path, "zstandard").hint


def test_it_can_be_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server blocks the signals while it starts, and looks at them here."""
    path = tmp_path / "image"
    path.write_bytes(gzip.compress(CONTENTS))
    monkeypatch.setattr(signal, "sigpending", lambda: {signal.SIGTERM})
    refused(path, "interrupted")


def test_a_file_system_in_it(kind: str, tmp_path: Path) -> None:
    image = make_image(
        tmp_path / "fs.img", "16M", "-t", "ext4", "-b", "1024", tree=sample_tree(tmp_path / "t")
    )
    plain = open_image(str(image))
    compressed = tmp_path / "fs.img.packed"
    compressed.write_bytes(COMPRESS[kind](image.read_bytes()))
    notes: list[str] = []
    filesystem = open_image(str(compressed), read_only=False, note=notes.append)
    assert view(filesystem) == view(plain)
    assert filesystem.read_only
    [note] = notes
    assert "read-only" in note and ",overlay" in note
    filesystem.close()
