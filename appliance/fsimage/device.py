"""Where the bytes of an image are.

A BlockDevice is a range of bytes with five verbs. Devices are stacked: a file at the bottom, a
partition cut out of it, changes kept in memory (or in a file: overlay_file.py) above that. The
file system on top does not know which it has.

Waiting. A read first asks for what the host has in memory (RWF_NOWAIT), which takes microseconds.
Only if something is missing does it call `about_to_wait` and ask again, waiting.

Data is read with preadv into buffers, not through a memory mapping: a page fault would hold the
interpreter's lock, and an I/O error or a truncated file would be a SIGBUS, the end of the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

from appliance.fsimage.errors import ImageError
from appliance.fsimage.in_use import kernel_uses
from appliance.fsimage.layers import Layers, State, any_in, block_in
from appliance.fsimage.snapshots import BlockSnapshots, KeepsSnapshots
from appliance.trace import log
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import AboutToWait, Buffer, waits_for_nobody

WritableBuffer = bytearray | memoryview

_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

_BLKROGET: Final = 0x125E

_CANNOT_TELL: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""What the host says where its file system does not know RWF_NOWAIT."""

_NOT_FOR_US: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY})
_NOT_WRITABLE: Final = (
    "with ,ro it is only read; with ,overlay or ,overlay=FILE changes go elsewhere"
)
_DIRECTORY: Final = "a directory is served with --directory"
_OPTIONS: Final = "after the name: @PATH, and then ,ro ,partition=N ,overlay or ,overlay=FILE"

_DEVICE_IS_FULL: Final = frozenset({Code.NOSPC, Code.DQUOT, Code.FBIG})
"""What the host may say about a write that is worth passing on. Anything else (the host's own
STALE, say, which would tell an NFS client to forget its file) is an I/O error of ours."""


class BlockDevice(Protocol):
    """A range of bytes. Every method may raise VfsError (IO; of a write also NOSPC)."""

    @property
    def size(self) -> int:
        """In bytes."""

    @property
    def read_only(self) -> bool:
        """Whether `write` would fail."""

    def read(self, offset: int, count: int) -> bytes:
        """Exactly `count` bytes."""

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        """Fill all of `views` with what begins at `offset`."""

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        """Write all of `data`, one buffer after the other. Durable only after `flush`."""

    def flush(self) -> None:
        """Return when everything that was written is durable."""

    def close(self) -> None:
        """Let go of it. The last call."""


def bytes_of(buffers: Sequence[Buffer]) -> int:
    """How many bytes they are together."""
    return sum(map(len, buffers))


def check_range(device: BlockDevice, offset: int, count: int) -> None:
    """VfsError if there is no such range."""
    if offset < 0 or count < 0 or offset + count > device.size:
        raise VfsError(
            Code.IO, f"{count} bytes at {offset} are outside of the device ({device.size} bytes)"
        )


def _after(buffers: Sequence[Buffer], done: int) -> list[memoryview]:
    """What is left of `buffers` after the first `done` bytes."""
    left = []
    for buffer in buffers:
        if done < len(buffer):
            left.append(memoryview(buffer)[done:])
        done = max(0, done - len(buffer))
    return left


def _is_write_protected(fd: int) -> bool:
    """Whether the kernel takes no writes to this block device, which root may open nevertheless."""
    flag = bytearray(4)
    with contextlib.suppress(OSError):
        fcntl.ioctl(fd, _BLKROGET, flag)
    return any(flag)


class FileDevice:
    """A file of the host, or a block device of it.

    The file is locked with flock(2), shared for reading and exclusively for writing, so that no
    second process of ours writes to what this one reads. What the kernel uses is not written to.

    `fd`: a file that is open already and that nobody else knows; it is not looked at further.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = True,
        about_to_wait: AboutToWait = waits_for_nobody,
        fd: int | None = None,
    ) -> None:
        self.path: Final = os.fspath(path)
        self.read_only: Final = read_only
        self._about_to_wait = about_to_wait
        self._nowait = os.RWF_NOWAIT
        self._fd = self._open() if fd is None else fd
        try:
            if fd is None:
                self._take()
            self.size = os.lseek(self._fd, 0, os.SEEK_END)
        except BaseException:
            os.close(self._fd)
            raise

    def again(self, path: str, *, read_only: bool) -> FileDevice:
        """The same file once more, for another part of it, in the lock of this one; both names
        lead to it. The lock ends when both are closed."""
        assert read_only or not self.read_only
        return FileDevice(
            path, read_only=read_only, about_to_wait=self._about_to_wait, fd=os.dup(self._fd)
        )

    def _open(self) -> int:
        try:
            flags = os.O_RDONLY if self.read_only else os.O_RDWR
            if not self.read_only and stat.S_ISBLK(os.stat(self.path).st_mode):
                flags |= os.O_EXCL  # of a block device: nobody in the kernel has it
            return os.open(self.path, flags | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise self._in_use(kernel_uses(self.path)) from None
            hint = _NOT_WRITABLE if error.errno in _NOT_FOR_US and not self.read_only else ""
            if error.errno == errno.EISDIR:
                hint = _DIRECTORY
            elif error.errno == errno.ENOENT and "," in self.path:
                hint = _OPTIONS
            purpose = "cannot open" if self.read_only else "cannot open for writing"
            raise ImageError(f"{purpose} {self.path}: {error.strerror}", hint) from None

    def _in_use(self, uses: list[str]) -> ImageError:
        how = ", ".join(uses) or "perhaps mounted elsewhere, or a part of something larger"
        loops = [use.removeprefix("as ") for use in uses if use.startswith("as /dev/loop")]
        hint = f"unmount it, then: losetup --detach {' '.join(loops)}" if loops else "unmount it"
        return ImageError(f"{self.path} is in use by the kernel, {how}", hint)

    def _take(self) -> None:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise ImageError(
                f"{self.path} is not an image: it is neither a file nor a block device",
                _DIRECTORY if stat.S_ISDIR(mode) else "",
            )
        if not self.read_only and stat.S_ISBLK(mode) and _is_write_protected(self._fd):
            raise ImageError(f"{self.path} is write-protected", _NOT_WRITABLE)
        try:
            kind = fcntl.LOCK_SH if self.read_only else fcntl.LOCK_EX
            fcntl.flock(self._fd, fcntl.LOCK_NB | kind)
        except BlockingIOError:
            wanted = "written to by" if self.read_only else "in use by"
            raise ImageError(
                f"{self.path} is {wanted} another process",
                "only readers can share an image; give each server a copy of its own",
            ) from None
        except OSError as error:
            if not self.read_only:
                raise ImageError(f"cannot lock {self.path}: {error.strerror}") from None
            log.warning("%s cannot be locked against writers: %s", self.path, error.strerror)
        uses = kernel_uses(self.path)
        if uses and not self.read_only:
            raise self._in_use(uses)
        for how in uses:
            log.warning("%s is also in use, %s: what is written there is not seen", self.path, how)

    def resize(self, size: int) -> None:
        """Make the file longer (what is new is zeros, and takes no room) or shorter."""
        if os.lseek(self._fd, 0, os.SEEK_END) < self.size:
            raise self._cut_off()
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise self._failed(error) from None
        self.size = size

    def read(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        self.readinto(offset, [buffer])
        return bytes(buffer)

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        wanted = bytes_of(views)
        if not 0 <= offset <= self.size - wanted:
            check_range(self, offset, wanted)
        done = self._read_cached(offset, views)
        if done < wanted:
            self._about_to_wait()
            self._read_waiting(offset + done, _after(views, done))

    def _read_cached(self, offset: int, views: Sequence[WritableBuffer]) -> int:
        """Read what the host has at hand; how much it was."""
        try:
            some = views if len(views) <= _IOV_MAX else views[:_IOV_MAX]
            return os.preadv(self._fd, some, offset, self._nowait)
        except BlockingIOError:
            return 0
        except OSError as error:
            if not self._nowait or error.errno not in _CANNOT_TELL:
                raise VfsError(Code.IO, f"{self.path}: {error.strerror}") from None
            # The host's file system cannot say whether it would wait (tmpfs never has to): from
            # now on reads just read. A read that does take long is noticed from outside.
            self._nowait = 0
            return self._read_cached(offset, views)

    def _cut_off(self) -> VfsError:
        """It is not read any more, nor changed: to write would make it long again, and what was
        cut off, zeros."""
        return VfsError(Code.IO, f"{self.path} has become shorter since it was opened")

    def _read_waiting(self, offset: int, views: list[memoryview]) -> None:
        while views:
            try:
                done = os.preadv(self._fd, views[:_IOV_MAX], offset)
            except OSError as error:
                raise VfsError(Code.IO, f"{self.path}: {error.strerror}") from None
            if done == 0:
                raise self._cut_off()
            offset += done
            views = _after(views, done)

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        wanted = bytes_of(data)
        if not 0 <= offset <= self.size - wanted:
            check_range(self, offset, wanted)
        if os.lseek(self._fd, 0, os.SEEK_END) < self.size:
            raise self._cut_off()
        done = self._write_some(offset, data)
        while done < wanted:
            done += self._write_some(offset + done, _after(data, done))

    def _write_some(self, offset: int, data: Sequence[Buffer]) -> int:
        """Write the beginning of `data`: how much it was."""
        try:
            some = data if len(data) <= _IOV_MAX else data[:_IOV_MAX]
            return os.pwritev(self._fd, some, offset)
        except OSError as error:
            raise self._failed(error) from None

    def flush(self) -> None:
        if self.read_only:
            return
        self._about_to_wait()
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> VfsError:
        code = VfsError.from_os(error).code
        return VfsError(
            code if code in _DEVICE_IS_FULL else Code.IO, f"{self.path}: {error.strerror}"
        )

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if not self.read_only and os.fstat(self._fd).st_nlink == 0:
                log.warning("%s was removed: what was written to it is gone with it", self.path)
            os.close(self._fd)


class Slice:
    """A part of a device: a partition. Closing it closes the device."""

    def __init__(self, base: BlockDevice, first: int, size: int) -> None:
        check_range(base, first, size)
        self.base: Final = base
        self._first = first
        self.size: Final = size
        self.read_only: Final = base.read_only

    def read(self, offset: int, count: int) -> bytes:
        check_range(self, offset, count)
        return self.base.read(self._first + offset, count)

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        check_range(self, offset, bytes_of(views))
        self.base.readinto(self._first + offset, views)

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        check_range(self, offset, bytes_of(data))
        self.base.write(self._first + offset, data)

    def flush(self) -> None:
        self.base.flush()

    def close(self) -> None:
        self.base.close()


class Overlay:
    """Changes in memory above a device that is only read.

    A changed block is kept whole, as immutable bytes, in layers of which earlier states can be
    kept. Whatever lies below, this device can be written to.
    """

    read_only: Final = False

    def __init__(self, base: BlockDevice, block_bytes: int = 4096) -> None:
        self._base = base
        self._block_bytes = block_bytes
        self._layers: Final = Layers(block_bytes)
        self.snapshots: Final[BlockSnapshots] = self._layers
        self.size: Final = base.size

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """Offset and contents of every changed block."""
        for number, block in self._layers.items():
            yield number * self._block_bytes, block

    def _block(self, number: int) -> bytes:
        block = block_in(self._layers.present, number)
        if block is not None:
            return block
        start = number * self._block_bytes
        return self._base.read(start, min(self._block_bytes, self.size - start))

    def _changed(self, state: State, offset: int, count: int) -> bool:
        first, last = offset // self._block_bytes, (offset + count - 1) // self._block_bytes
        return any_in(state, first, last)

    def read(self, offset: int, count: int) -> bytes:
        if not self._changed(self._layers.present, offset, count):
            return self._base.read(offset, count)
        buffer = bytearray(count)
        self.readinto(offset, [buffer])
        return bytes(buffer)

    def readinto(self, offset: int, views: Sequence[WritableBuffer]) -> None:
        wanted = bytes_of(views)
        state = self._layers.present
        self._base.readinto(offset, views)
        if not self._changed(state, offset, wanted):
            return
        for view in views:
            self._lay_over(state, offset, memoryview(view))
            offset += len(view)

    def _lay_over(self, state: State, offset: int, view: memoryview) -> None:
        """Replace in `view`, which has what the base has at `offset`, what was changed."""
        for number, inside, at, length in self._pieces(offset, len(view)):
            block = block_in(state, number)
            if block is not None:
                view[at : at + length] = block[inside : inside + length]

    def _pieces(self, offset: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """A range cut at block boundaries: block, offset in it, offset in the range, length."""
        at = 0
        while at < count:
            number, inside = divmod(offset + at, self._block_bytes)
            length = min(self._block_bytes - inside, count - at)
            yield number, inside, at, length
            at += length

    def write(self, offset: int, data: Sequence[Buffer]) -> None:
        check_range(self, offset, bytes_of(data))
        with self._layers.lock:
            for buffer in data:
                view = memoryview(buffer)
                for number, inside, at, length in self._pieces(offset, len(view)):
                    self._change(number, inside, view[at : at + length])
                offset += len(view)

    def _change(self, number: int, inside: int, piece: memoryview) -> None:
        if len(piece) == self._block_bytes:
            self._layers.put(number, bytes(piece))
            return
        block = bytearray(self._block(number))
        block[inside : inside + len(piece)] = piece
        self._layers.put(number, bytes(block))

    def flush(self) -> None:
        """Nothing: what is in memory is as durable as it will get."""

    def close(self) -> None:
        self._base.close()


def snapshots_of(device: BlockDevice) -> BlockSnapshots | None:
    """Where the states of a device are kept, if it can keep any. Those of a partition are states of
    the whole disk."""
    while isinstance(device, Slice):
        device = device.base
    return device.snapshots if isinstance(device, KeepsSnapshots) else None
