"""Overlay files on the host: opened beside their image, and merged into it.

A merge can be killed and begun again: the header says that it is going on before the first byte of
the image is written, from then on the overlay is good for nothing but to be merged, and writing the
same blocks again changes nothing. merging.py has the order of it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import Final

from appliance.fsimage.device import BlockDevice, FileDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.merging import Merging, of_another
from appliance.fsimage.overlay_file import OverlayFile, begin
from appliance.fsimage.overlay_format import Base, Header, MergeStage, read_header
from appliance.fsimage.spool import compression
from appliance.vfs.interface import AboutToWait, waits_for_nobody

_NEW_MODE: Final = 0o600


def open_overlay(
    file: str,
    base: BlockDevice,
    base_file: str,
    *,
    eager: bool = False,
    about_to_wait: AboutToWait = waits_for_nobody,
) -> OverlayFile:
    """The overlay in `file`, which is made if need be, above `base`, the image at `base_file`.
    ImageError: it is in use, damaged, or of another image. Closing the overlay closes the base."""
    store = _open_store(file, about_to_wait)
    try:
        return OverlayFile(base, store, _header_for(store, base, base_file), eager=eager)
    except ImageError as error:
        store.close()
        raise ImageError(f"{file}: {error}", error.hint) from None
    except BaseException:
        store.close()
        raise


def _open_store(file: str, about_to_wait: AboutToWait) -> FileDevice:
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _NEW_MODE))
    except OSError as error:
        raise ImageError(f"cannot open the overlay {file}: {error.strerror}") from None
    return FileDevice(file, read_only=False, about_to_wait=about_to_wait)


def _header_for(store: FileDevice, base: BlockDevice, base_file: str) -> Header:
    header = read_header(store)
    identity = Base.of(base, base_file)
    if header is None:
        return _begin(store, identity, base_file)
    if header.stage is not MergeStage.NOT_BEGUN:
        raise ImageError(
            f"it is half merged into {base_file}",
            f"finish it: rumpnfsd merge {shlex.quote(base_file)} {shlex.quote(store.path)}",
        )
    if not header.base.difference(identity):
        return header
    if _is_empty(store, header):
        return _begin(store, identity, base_file)
    raise of_another(base_file, header.base, identity)


def _is_empty(store: FileDevice, header: Header) -> bool:
    """Whether it holds nothing, and so fits any image: as one that a start has left which failed
    because of the image."""
    if header.snapshots or store.size < header.data_offset:
        return False
    return not store.read(header.map_offset(header.present), header.map_bytes).strip(b"\0")


def _begin(store: FileDevice, identity: Base, base_file: str) -> Header:
    """Make an empty overlay of the file. The time of the image, by which it will be known again,
    is made durable before; the name of the overlay in its directory after that."""
    _keep(Path(base_file))
    header = begin(store, identity)
    _keep(Path(store.path).resolve().parent)
    return header


def _keep(path: Path) -> None:
    """Make a file with its times, or the entries of a directory, durable, where the host can."""
    with contextlib.suppress(OSError):
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


# --- merging -----------------------------------------------------------------


def merge(image: str, file: str, *, discard_snapshots: bool = False) -> int:
    """Write the changes in the overlay `file` into `image`; how many bytes. Afterwards the overlay
    is an empty one of that image. ImageError, VfsError: nothing is lost, it can be tried again."""
    base = _for_itself(image)
    try:
        store = _for_itself(file)
    except BaseException:
        base.close()
        raise
    try:
        return _merge(base, store, discard_snapshots)
    except ImageError as error:
        raise ImageError(f"{file}: {error}", error.hint) from None
    finally:
        store.close()
        base.close()


def _for_itself(file: str) -> FileDevice:
    try:
        return FileDevice(file, read_only=False)
    except ImageError as error:
        hint = "a merge writes to both files, and has to be alone with them"
        raise ImageError(str(error), hint) from None


def _merge(base: FileDevice, store: FileDevice, discard_snapshots: bool) -> int:
    kind = compression(base)
    if kind:
        raise ImageError(
            f"{base.path} is compressed with {kind}",
            "decompress it, keeping its time (gzip -dk does), and merge into that",
        )
    header = read_header(store)
    if header is None:
        return 0
    if header.stage is MergeStage.NOT_BEGUN and _is_empty(store, header):
        return 0
    there = Base.of(base, base.path)
    if header.base.size != there.size:
        raise of_another(base.path, header.base, there)
    overlay = OverlayFile(base, store, header)
    merging = Merging(overlay, base, header)
    merging.check(there, base.path)
    _check_snapshots(header, discard_snapshots)
    merged = merging.run(os.path.abspath(store.path)) if overlay.changed_blocks else 0
    _begin(store, Base.of(base, base.path), base.path)
    return merged


def _check_snapshots(header: Header, discard: bool) -> None:
    if header.snapshots and not discard:
        names = ", ".join(kept.name for kept in header.snapshots)
        raise ImageError(
            f"it holds snapshots, which a merge would lose: {names}",
            "delete them with rumpctl snapshot delete, or say --discard-snapshots",
        )
