"""What is said of a file that is no image which is known here."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.fsimage.errors import ImageError
from appliance.fsimage.image import open_image


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


def test_a_refused_image_is_let_go(tmp_path: Path) -> None:
    """Its lock is free again."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    for _ in range(2000):
        with pytest.raises(ImageError):
            open_image(str(image))
