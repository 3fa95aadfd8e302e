"""From a file on the host to an open file system: which part of it, and what is in there."""

from __future__ import annotations

from appliance.fsimage.device import BlockDevice, FileDevice, Slice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.fsimage.partition import Partition, read_partitions
from appliance.fsimage.probe import Kind, probe
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import AboutToWait, FileSystem, waits_for_nobody


def open_image(
    file: str, *, partition: int | None = None, about_to_wait: AboutToWait = waits_for_nobody
) -> FileSystem:
    """The file system in an image, or in one partition of it; the image is from now on locked
    against writers. ImageError: it cannot be served. Images are only read, for now."""
    device: BlockDevice = FileDevice(file, about_to_wait=about_to_wait)
    try:
        part, name = part_of(device, file, partition)
        kind, what, hint = probe(part)
        if kind is Kind.EXT4:
            return open_ext4(part, name)
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
