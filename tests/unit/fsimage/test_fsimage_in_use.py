"""What the kernel has in use is not written to: mounts, swap, loop devices."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from appliance.fsimage import in_use
from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError

MOUNTINFO = """\
22 1 253:0 / / rw,relatime - ext4 /dev/root rw
40 22 8:17 / /mnt/with\\040blank rw - ext4 /dev/sdb1 rw
41 22 8:32 /sub /srv rw - xfs /dev/sdc rw
short line
"""


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in which the kernel would say so."""
    for name, text in (("mountinfo", MOUNTINFO), ("swaps", "Filename Type Size Used Priority\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(in_use, "_MOUNTS", tmp_path / "mountinfo")
    monkeypatch.setattr(in_use, "_SWAPS", tmp_path / "swaps")
    monkeypatch.setattr(in_use, "_BLOCK_DEVICES", tmp_path / "block")
    monkeypatch.setattr(in_use, "_BY_NUMBER", tmp_path / "dev")
    return tmp_path


def as_block_device(monkeypatch: pytest.MonkeyPatch, path: Path, major: int, minor: int) -> None:
    """`path` looks like a block device."""
    really = os.stat
    status = list(really(path))
    status[0] = stat.S_IFBLK | 0o660
    fake = os.stat_result(status, {"st_rdev": os.makedev(major, minor)})
    monkeypatch.setattr(os, "stat", lambda p, **how: fake if p == str(path) else really(p, **how))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "device"
    path.write_bytes(bytes(5000))
    return path


def test_a_device_that_is_mounted(
    kernel: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_block_device(monkeypatch, file, 8, 17)
    assert in_use.kernel_uses(str(file)) == ["mounted at /mnt/with blank"]


def test_a_disk_of_which_a_partition_is_mounted(
    kernel: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernel / "dev" / "8:16" / "sdb1").mkdir(parents=True)
    (kernel / "dev" / "8:16" / "sdb1" / "dev").write_text("8:17\n")
    as_block_device(monkeypatch, file, 8, 16)
    assert in_use.kernel_uses(str(file)) == ["mounted at /mnt/with blank"]


def test_a_device_that_is_not(kernel: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_block_device(monkeypatch, file, 8, 1)
    assert in_use.kernel_uses(str(file)) == []


def test_a_file_to_which_the_kernel_swaps(kernel: Path, file: Path) -> None:
    assert in_use.kernel_uses(str(file)) == []
    with (kernel / "swaps").open("a") as swaps:
        swaps.write(f"/gone\tfile\t1\t0\t-2\n{file}\tfile\t1\t0\t-2\n")
    with pytest.raises(ImageError, match=f"for swapping, as {file}"):
        FileDevice(file, read_only=False)


def test_nothing_is_known_where_the_kernel_says_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_MOUNTS", "_SWAPS", "_BLOCK_DEVICES", "_BY_NUMBER"):
        monkeypatch.setattr(in_use, name, tmp_path / "nothing")
    FileDevice(file, read_only=False).close()


def test_one_that_the_kernel_has_for_itself(
    file: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Part of a RAID, or mounted where we do not see it: O_EXCL says so, without a reason."""
    as_block_device(monkeypatch, file, 9, 0)

    def busy(path: str, flags: int, *words: object, **more: object) -> int:
        assert flags & os.O_EXCL
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(ImageError, match="in use by the kernel, perhaps mounted elsewhere"):
        FileDevice(file, read_only=False)
