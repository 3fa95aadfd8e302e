"""What the user writes behind --image, and what is said of a file that is no such image."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.fsimage.errors import ImageError
from appliance.fsimage.image import ImageSpec, open_image


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("fs.img", ImageSpec("fs.img")),
        ("fs.img,ro", ImageSpec("fs.img", read_only=True)),
        ("fs.img@/data", ImageSpec("fs.img", "/data")),
        ("fs.img@/data/", ImageSpec("fs.img", "/data")),
        ("fs.img@/", ImageSpec("fs.img", "/")),
        ("fs.img@/a/b,ro", ImageSpec("fs.img", "/a/b", read_only=True)),
        ("fs.img,partition=2", ImageSpec("fs.img", partition=2)),
        ("fs.img@/x,ro,partition=12", ImageSpec("fs.img", "/x", read_only=True, partition=12)),
        ("fs.img@/x,partition=12,ro", ImageSpec("fs.img", "/x", read_only=True, partition=12)),
        ("/srv/me@home,1.img", ImageSpec("/srv/me@home,1.img")),
        ("me@home", ImageSpec("me@home")),
        ("a,b@/c,d,ro", ImageSpec("a,b", "/c,d", read_only=True)),
        ("backup,ro@/", ImageSpec("backup,ro")),
        ("dir@/fs.img@/", ImageSpec("dir@/fs.img")),
        ("fs.img,rw", ImageSpec("fs.img,rw")),
        ("x,partition=1@/", ImageSpec("x,partition=1")),
    ],
)
def test_the_rule(text: str, spec: ImageSpec) -> None:
    assert ImageSpec.parse(text) == spec


@pytest.mark.parametrize("text", ["", ",ro", "@/data", ",partition=1"])
def test_no_file(text: str) -> None:
    with pytest.raises(ImageError, match="no file"):
        ImageSpec.parse(text)


@pytest.mark.parametrize("number", ["", "0", "-1", "x", "1000000", "\u0663", " 1"])
def test_no_partition(number: str) -> None:
    with pytest.raises(ImageError, match="is no partition") as caught:
        ImageSpec.parse(f"fs.img,partition={number}")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("offset", "magic", "words", "hint"),
    [
        (0, b"QFI\xfb", "a qcow2 image", "qemu-img convert"),
        (0, b"\x1f\x8b\x08", "compressed with gzip", "decompress"),
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
        open_image(ImageSpec(str(image)))
    assert str(image) in str(caught.value)
    assert hint in caught.value.hint


def test_an_empty_file(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"")
    with pytest.raises(ImageError, match="none of the file systems"):
        open_image(ImageSpec(str(image)))


def test_a_refused_image_is_let_go(tmp_path: Path) -> None:
    """Its lock is free again."""
    image = tmp_path / "image"
    image.write_bytes(bytes(4096))
    for _ in range(2000):
        with pytest.raises(ImageError):
            open_image(ImageSpec(str(image)))
