"""Compressed images: decompressed once, into a temporary file without a name.

Reading an image needs any of its blocks at any time, and the usual formats can only be read from
the start. So an image.gz, .xz or .zst is decompressed when it is opened, into $TMPDIR, where it is
gone when the process is; where it has zeros, the file has holes. What kind it is, its first bytes
say, not its name.

Nothing that was decompressed is written to: the changes would be gone, too.
"""

from __future__ import annotations

import errno
import os
import signal
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, Protocol

from appliance import image_limits
from appliance.fsimage.device import BlockDevice, FileDevice
from appliance.fsimage.errors import ImageError
from appliance.vfs.interface import AboutToWait, waits_for_nobody

_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""(A zstd file may also begin with a frame that is to be skipped: then it is not recognised.)"""

_HOLE_BYTES: Final = 4096
_ZEROS: Final = bytes(_HOLE_BYTES)
_READ_BYTES: Final = 256 * 1024
_PIECE_BYTES: Final = 1024 * 1024
_ZSTD_READ_BYTES: Final = 4096
"""zstd has no limit on what comes out at once: 4 bytes may stand for 128 KiB, these for 128 MiB."""

_STOP: Final = {signal.SIGINT, signal.SIGTERM}

_TRUNCATED: Final = "it ends in the middle"


def compression(device: BlockDevice) -> str:
    """What an image is compressed with; "" if it is not."""
    for magic, name in _MAGIC.items():
        if device.size >= len(magic) and device.read(0, len(magic)) == magic:
            return name
    return ""


def spool(
    device: FileDevice, kind: str, about_to_wait: AboutToWait = waits_for_nobody
) -> FileDevice:
    """The decompressed contents of `device`, which is closed. ImageError: it is damaged or too
    large, there is no room for it, or nothing that decompresses it."""
    import tempfile  # only who needs it waits for it

    path = device.path
    try:
        with open(path, "rb") as source, tempfile.TemporaryFile("wb") as target:
            size = _write_sparse(target.fileno(), _PIECES[kind](source))
            os.ftruncate(target.fileno(), size)
            fd = os.open(f"/proc/self/fd/{target.fileno()}", os.O_RDONLY | os.O_CLOEXEC)
    except (_DamagedError, zlib.error) as error:
        raise _refused(path, kind, str(error).rpartition(": ")[2]) from None
    except OSError as error:
        raise _cannot(error, tempfile.gettempdir()) from None
    finally:
        device.close()
    return FileDevice(path, about_to_wait=about_to_wait, fd=fd)


def _refused(path: str, kind: str, reason: str) -> ImageError:
    if "memory" in reason:
        return ImageError(
            f"decompressing it needs more than {image_limits.SPOOL_MEMORY_MAX >> 20} MiB of memory",
            "decompress it yourself",
        )
    return ImageError(f"it is compressed with {kind}, and damaged: {reason}", f"{kind} -t {path}")


def _cannot(error: OSError, folder: str) -> ImageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ImageError(
            f"there is no room for the decompressed image in {folder}",
            "name a place that is large enough: TMPDIR=/var/tmp rumpnfsd ...",
        )
    return ImageError(f"it cannot be decompressed: {error.strerror}")


def _write_sparse(fd: int, pieces: Iterator[bytes]) -> int:
    """Write what is not zeros; how much there is altogether."""
    end = 0
    for piece in pieces:
        if end + len(piece) > image_limits.SPOOL_BYTES_MAX:
            raise ImageError(
                f"the decompressed image has more than {image_limits.SPOOL_BYTES_MAX >> 30} GiB",
                "decompress it yourself",
            )
        if signal.sigpending() & _STOP:  # they are blocked: whoever waits for us would wait long
            raise ImageError("interrupted while it was decompressed")
        _write_piece(fd, end, piece)
        end += len(piece)
    return end


def _write_piece(fd: int, offset: int, piece: bytes) -> None:
    """Write a piece without the blocks of zeros in it."""
    if piece == bytes(len(piece)):
        return
    first = None
    for at in range(0, len(piece), _HOLE_BYTES):
        block = piece[at : at + _HOLE_BYTES]
        if block != _ZEROS[: len(block)]:
            first = at if first is None else first
        elif first is not None:
            _write_all(fd, offset + first, memoryview(piece)[first:at])
            first = None
    if first is not None:
        _write_all(fd, offset + first, memoryview(piece)[first:])


def _write_all(fd: int, offset: int, view: memoryview) -> None:
    while view:
        done = os.pwrite(fd, view, offset)
        offset, view = offset + done, view[done:]


# --- the formats -------------------------------------------------------------


class _DamagedError(Exception):
    """What is compressed cannot be."""


class _Decompressor(Protocol):
    """What the modules have in common. One is good for one of several parts that may follow each
    other in a file."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


def _gzip_pieces(source: BinaryIO) -> Iterator[bytes]:
    import gzip

    with gzip.GzipFile(fileobj=source) as file:
        try:
            while piece := file.read(_PIECE_BYTES):
                yield piece
        except EOFError:
            raise _DamagedError(_TRUNCATED) from None
        except gzip.BadGzipFile as error:
            behind = str(error).startswith("Not a gzipped file")
            reason = "something else follows" if behind else str(error)
            raise _DamagedError(reason) from None


def _xz_pieces(source: BinaryIO) -> Iterator[bytes]:
    import lzma

    left = source.read(_READ_BYTES)
    try:
        while left:
            part = lzma.LZMADecompressor(lzma.FORMAT_XZ, image_limits.SPOOL_MEMORY_MAX)
            while not part.eof:
                yield part.decompress(left, _PIECE_BYTES)
                left = b""
                if part.needs_input and not (left := source.read(_READ_BYTES)):
                    raise _DamagedError(_TRUNCATED)
            left = _after_padding(part, source)
    except lzma.LZMAError as error:
        raise _DamagedError(str(error).lower()) from None


def _zstd_pieces(source: BinaryIO) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise ImageError(
            "it is compressed with zstd, which needs the Python package zstandard",
            "pip install 'rumpnfsd[zstd]', or decompress it: zstd -d",
        ) from None
    window = image_limits.SPOOL_MEMORY_MAX // 2
    left = source.read(_ZSTD_READ_BYTES)
    try:
        while left:
            part = zstandard.ZstdDecompressor(max_window_size=window).decompressobj()
            while True:
                yield part.decompress(left)
                if part.eof:
                    break
                if not (left := source.read(_ZSTD_READ_BYTES)):
                    raise _DamagedError(_TRUNCATED)
            left = part.unused_data or source.read(_ZSTD_READ_BYTES)
    except zstandard.ZstdError as error:
        raise _DamagedError(str(error).lower()) from None


def _after_padding(part: _Decompressor, source: BinaryIO) -> bytes:
    """What comes after a part and the zeros that may follow it."""
    left = part.unused_data.lstrip(b"\0")
    while not left and (more := source.read(_READ_BYTES)):
        left = more.lstrip(b"\0")
    return left


_PIECES: Final = {"gzip": _gzip_pieces, "xz": _xz_pieces, "zstd": _zstd_pieces}
