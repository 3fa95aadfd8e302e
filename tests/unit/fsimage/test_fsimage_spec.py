"""What is said of a file that is no image which is known here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from appliance.fsimage.errors import ImageError
from appliance.fsimage.image import open_image
from tests.unit.fsimage.ext4_images import make_image


@pytest.mark.parametrize(
    ("offset", "magic", "words", "hint"),
    [
        (0, b"QFI\xfb", "a qcow2 image", "qemu-img convert"),
        (0, b"\x1f\x8b\x08", "compressed with gzip, and damaged", "gzip -t"),
        (0, b"XFSB", "an XFS", "--directory"),
        (0x10040, b"_BHRfS_M", "a Btrfs", "--directory"),
        (0x8001, b"CD001", "an ISO 9660", "--directory"),
        (82, b"FAT32", "a FAT", "--directory"),
        (0, b"LUKS\xba\xbe", "LUKS", "cryptsetup"),
        (0, b"", "none of the file systems", "mkfs.ext4"),
        (0, b"something", "none of the file systems", "file(1)"),
        (0, b"BZh91AY", "compressed with bzip2", "decompress"),
        (0, b"\x04\x22\x4d\x18", "compressed with lz4", "decompress"),
        (512, b"LABELONE", "a physical volume of LVM", "/dev/VG/LV"),
        (510, b"\x55\xaa", "boot sector", ""),
    ],
)
def test_other_images_are_named(
    tmp_path: Path, offset: int, magic: bytes, words: str, hint: str
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(offset) + magic + bytes(100_000))
    with pytest.raises(ImageError, match=words) as caught:
        open_image(str(image))
    assert str(image) in str(caught.value)
    assert hint in caught.value.hint


def test_an_empty_file(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    with pytest.raises(ImageError, match="none of the file systems"):
        open_image(str(image))


@pytest.mark.parametrize("block_bytes", [1024, 4096])
def test_who_lost_a_superblock_is_not_told_to_make_a_new_file_system(
    tmp_path: Path, block_bytes: int
) -> None:
    size = "12M" if block_bytes == 1024 else "140M"
    image = make_image(tmp_path / "fs.img", size, "-t", "ext4", "-b", str(block_bytes))
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(1024))
    with pytest.raises(ImageError, match="without its superblock") as caught:
        open_image(str(image))
    assert f"in block {8 * block_bytes + (block_bytes == 1024)})" in str(caught.value)
    assert "mkfs" not in caught.value.hint and "e2fsck" in caught.value.hint
    subprocess.run(["e2fsck", "-fy", image], capture_output=True, check=False)
    open_image(str(image)).close()


def test_options_that_became_a_part_of_the_name(tmp_path: Path) -> None:
    """Such as "fs.img,rw", or "disk.img,partition=3@/b"."""
    with pytest.raises(ImageError, match="No such file") as caught:
        open_image(str(tmp_path / "fs.img,rw"))
    assert "@PATH, and then ,ro" in caught.value.hint
    with pytest.raises(ImageError, match="No such file") as caught:
        open_image(str(tmp_path / "fs.img"))
    assert caught.value.hint == ""


@pytest.mark.parametrize("read_only", [True, False])
def test_a_directory_is_served_otherwise(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(ImageError) as caught:
        open_image(str(tmp_path), read_only=read_only)
    assert "--directory" in caught.value.hint


def test_a_refused_image_is_let_go(tmp_path: Path) -> None:
    """Its lock is free again."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    for _ in range(2000):
        with pytest.raises(ImageError):
            open_image(str(image))
