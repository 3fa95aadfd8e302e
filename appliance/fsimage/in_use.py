"""Who else uses a file or a block device: what the kernel of the host says about it.

Programs of our own kind lock what they open. The kernel takes no lock, but it says which files are
behind its loop devices, what is mounted, and what it swaps to.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_BLOCK_DEVICES: Final = Path("/sys/block")
_BY_NUMBER: Final = Path("/sys/dev/block")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SWAPS: Final = Path("/proc/swaps")

_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


def kernel_uses(path: str) -> list[str]:
    """How the kernel uses what is at `path` in a way in which it may write to it, in words that go
    on "in use by the kernel, ..."."""
    status = os.stat(path)
    found = [f"as {name}" for name in _loop_devices(path)]
    found += [f"for swapping, as {name}" for name in _swaps(status)]
    if stat.S_ISBLK(status.st_mode):
        found += [f"mounted at {place}" for place in _mounts(status.st_rdev)]
    return found


def _loop_devices(path: str) -> Iterator[str]:
    """The loop devices through which a file can be written to."""
    for backing in sorted(_BLOCK_DEVICES.glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            device = backing.parents[1]
            behind = backing.read_text().rstrip("\n")
            if (device / "ro").read_text().strip() == "0" and os.path.samefile(behind, path):
                yield f"/dev/{device.name}"


def _mounts(device: int) -> Iterator[str]:
    """Where a block device, or a partition of it, is mounted."""
    numbers = {_number(device)}
    for entry in _BY_NUMBER.glob(f"{_number(device)}/*/dev"):
        with contextlib.suppress(OSError):
            numbers.add(entry.read_text().strip())
    for line in _lines(_MOUNTS):
        fields = line.split(" ")
        if len(fields) > 4 and fields[2] in numbers:
            yield _unescape(fields[4])


def _swaps(status: os.stat_result) -> Iterator[str]:
    for line in _lines(_SWAPS)[1:]:
        name = _unescape(line.split(" ")[0].split("\t")[0])
        with contextlib.suppress(OSError):
            swap = os.stat(name)
            if os.path.samestat(swap, status) or (
                stat.S_ISBLK(swap.st_mode) and swap.st_rdev == status.st_rdev
            ):
                yield name


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape(text: str) -> str:
    """Blanks and the like are octal in files of /proc."""
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)
