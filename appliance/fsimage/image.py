"""From a file on the host to an open file system: what has to be put between them, which part of
it, and what is in there.

    the file, or what it decompresses to (spool.py)
      changes that are kept elsewhere (device.Overlay, overlays.py)
        a partition of it
          the file system
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.clock import Clock
from appliance.fsimage.device import BlockDevice, FileDevice, Overlay, Slice
from appliance.fsimage.durability import Durability
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.fsimage.partition import Partition, read_partitions
from appliance.fsimage.probe import Kind, probe
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import AboutToWait, FileSystem, waits_for_nobody

Note = Callable[[str], None]

IN_MEMORY = ""
"""As the name of an overlay: changes are kept in memory, and lost at the end."""


def unheard(note: str) -> None:
    """The Note of a program that tells its user nothing."""


def open_image(
    file: str,
    *,
    partition: int | None = None,
    read_only: bool = True,
    overlay: str | None = None,
    durability: Durability = Durability.FULL,
    clock: Clock | None = None,
    about_to_wait: AboutToWait = waits_for_nobody,
    note: Note = unheard,
    disk: FileDevice | None = None,
) -> FileSystem:
    """The file system in an image, or in one partition of it. The image is from now on locked
    against other writers, and if it is to be written to, against readers.

    `overlay`: the image is only read; changes go to this file, or into memory (IN_MEMORY).
    `disk`: the file, if it is open already because more than one partition of it is served.
    `note` is told what the user may not expect. ImageError: it cannot be served.
    """
    device = open_device(
        file,
        read_only=read_only,
        overlay=overlay,
        durability=durability,
        about_to_wait=about_to_wait,
        note=note,
        disk=disk,
    )
    try:
        part, name = part_of(device, file, partition)
        kind, what, hint = probe(part)
        if kind is Kind.EXT4:
            return open_ext4(
                part, name, durability=durability, clock=clock, about_to_wait=about_to_wait
            )
        if kind is Kind.DISK:
            raise ImageError("it has a boot sector, but no file system that is known here")
        raise ImageError(f"it is {what}", hint)
    except ImageError as error:
        device.close()
        raise ImageError(f"{file}: {error}", error.hint) from None
    except VfsError as error:
        device.close()
        raise ImageError(f"{file}: {error.detail}", "check a copy with e2fsck -f") from None
    except BaseException:
        device.close()
        raise


def open_device(
    file: str,
    *,
    read_only: bool = True,
    overlay: str | None = None,
    durability: Durability = Durability.FULL,
    about_to_wait: AboutToWait = waits_for_nobody,
    note: Note = unheard,
    disk: FileDevice | None = None,
) -> BlockDevice:
    """The bytes of an image, decompressed if need be, and below an overlay if one is named."""
    read_only_file = read_only or overlay is not None
    if disk is None:
        from_file = FileDevice(file, read_only=read_only_file, about_to_wait=about_to_wait)
    else:
        from_file = disk.again(file, read_only=read_only_file)
    base = _decompressed(from_file, about_to_wait)
    if base is not from_file and overlay is None and not read_only:
        note(
            f"{file} is served read-only: changes to what was decompressed would be lost"
            " (,overlay=FILE keeps them, ,overlay keeps them until the end)"
        )
    if overlay is None:
        return base
    if overlay == IN_MEMORY:
        note(f"changes to {file} are kept in memory, and lost at the end")
        return Overlay(base)
    from appliance.fsimage.overlays import open_overlay

    try:
        eager = durability is Durability.PROCESS
        return open_overlay(overlay, base, file, eager=eager, about_to_wait=about_to_wait)
    except BaseException:
        base.close()
        raise


def _decompressed(device: FileDevice, about_to_wait: AboutToWait) -> FileDevice:
    """What is to be read: the file itself, unless it is compressed."""
    from appliance.fsimage.spool import compression, spool

    try:
        kind = compression(device)
        return spool(device, kind, about_to_wait) if kind else device
    except (ImageError, VfsError) as error:
        device.close()
        what = error.detail if isinstance(error, VfsError) else str(error)
        raise ImageError(f"{device.path}: {what}", getattr(error, "hint", "")) from None
    except BaseException:
        device.close()
        raise


def part_of(device: BlockDevice, file: str, number: int | None) -> tuple[BlockDevice, str]:
    """The part of the image that is meant, and its name for messages."""
    if number is None:
        if probe(device)[0] is Kind.DISK:
            partitions = read_partitions(device)
            if partitions:
                raise ImageError(
                    f"it is a whole disk with the partitions {_listed(partitions)}",
                    f"name one of them: {file},partition={partitions[0].number}",
                )
        return device, file
    partitions = read_partitions(device)
    for partition in partitions:
        if partition.number == number:
            part = Slice(device, partition.first, partition.size)
            return part, f"{file},partition={number}"
    if not partitions:
        raise ImageError(f"there is no partition {number}: it has no partition table")
    raise ImageError(f"there is no partition {number}, only {_listed(partitions)}")


def _listed(partitions: list[Partition]) -> str:
    return "; ".join(str(partition) for partition in partitions)
