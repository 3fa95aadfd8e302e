"""Multiple mount protection: an image that somebody has mounted is refused, with his name."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.mmp import EXT4_MMP_SEQ_FSCK, check_mmp, mmp_struct
from appliance.fsimage.ext4.superblock import Superblock
from appliance.fsimage.ext4.volume import Volume
from tests.unit.fsimage.ext4_images import make_image


def volume_of(image: Path) -> Volume:
    device = FileDevice(image)
    return Volume(device, Superblock.read(device), "image")


def edit(image: Path, *, sealed: bool = True, **fields: object) -> None:
    """Change fields of the mmp block."""
    volume = volume_of(image)
    at = volume.superblock.disk.s_mmp_block << volume.block_bits
    block = bytearray(volume.device.read(at, 1024))
    mmp = mmp_struct.decode(block)
    for name, value in fields.items():
        setattr(mmp, name, value)
    mmp.encode_into(block, 0)
    if sealed and volume.has_metadata_csum:
        mmp.mmp_checksum = crc32c(volume.seed, bytes(block[:0x3FC]))
        mmp.encode_into(block, 0)
    volume.device.close()
    with image.open("r+b") as file:
        file.seek(at)
        file.write(block)


@pytest.fixture(params=["metadata_csum", "^metadata_csum"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    options = ["-t", "ext4", "-O", f"mmp,{request.param}"]
    return make_image(tmp_path / "fs.img", "8M", *options)


def test_what_mke2fs_made_is_free(image: Path) -> None:
    check_mmp(volume_of(image))


def test_without_the_feature_nothing_is_looked_at(tmp_path: Path) -> None:
    check_mmp(volume_of(make_image(tmp_path / "fs.img", "8M", "-t", "ext4")))


def test_a_mounted_one_is_refused_with_the_name_of_the_host(image: Path) -> None:
    edit(image, mmp_seq=1, mmp_nodename=b"build-17\n\xff".ljust(64, b"\0"))
    with pytest.raises(ImageError, match=r'in use by host "build-17\?') as caught:
        check_mmp(volume_of(image))
    assert "clear_mmp" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_one_that_is_checked_is_refused(image: Path) -> None:
    edit(image, mmp_seq=EXT4_MMP_SEQ_FSCK)
    with pytest.raises(ImageError, match="checked by e2fsck"):
        check_mmp(volume_of(image))


def test_a_damaged_block_is_refused(image: Path) -> None:
    edit(image, mmp_magic=0)
    with pytest.raises(ImageError, match="damaged"):
        check_mmp(volume_of(image))


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    image = make_image(tmp_path / "fs.img", "8M", "-t", "ext4", "-O", "mmp,metadata_csum")
    edit(image, sealed=False, mmp_time=12345)
    with pytest.raises(ImageError, match="checksum"):
        check_mmp(volume_of(image))


def test_a_block_that_cannot_be(image: Path) -> None:
    volume = volume_of(image)
    volume.superblock.disk.s_mmp_block = 1 << 40
    with pytest.raises(ImageError, match="cannot be"):
        check_mmp(volume)
