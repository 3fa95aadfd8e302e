"""From what the user names to an open file system.

The rule for `FILE[@PATH][,ro][,partition=N]`: options are cut off from the end, as long as what
stands behind the last comma is one. Of the rest, what stands behind the last "@/" is the PATH,
where the file system is mounted in the tree that is served (with its "/"); without one it is "/".
So "@" and "," in file names need nothing: `me@home,1.img` is a file. A name that itself ends like
an option or has "@/" in it is followed by its PATH: `backup,ro@/` is the file "backup,ro" at "/".
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.fsimage.device import BlockDevice, FileDevice, Slice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.filesystem import open_ext4
from appliance.fsimage.partition import Partition, read_partitions
from appliance.fsimage.probe import Kind, probe
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import AboutToWait, FileSystem, waits_for_nobody


@dataclass(slots=True, frozen=True)
class ImageSpec:
    """An image as the user names it."""

    file: str
    path: str = "/"
    read_only: bool = False
    partition: int | None = None

    @classmethod
    def parse(cls, text: str) -> ImageSpec:
        """The image in `FILE[@PATH][,ro][,partition=N]`. ImageError: that makes no sense."""
        rest = text
        read_only, partition = False, None
        while True:
            before, comma, option = rest.rpartition(",")
            if comma and option == "ro":
                read_only = True
            elif comma and option.startswith("partition=") and "@/" not in option:
                partition = _partition_number(option, text)
            else:
                break
            rest = before
        file, at, path = rest.rpartition("@/")
        if not at:
            file, path = rest, ""
        if not file:
            raise ImageError(f'no file is named in "{text}"', "FILE[@PATH][,ro][,partition=N]")
        return cls(file, "/" + path.strip("/"), read_only, partition)


def _partition_number(option: str, text: str) -> int:
    _, _, number = option.partition("=")
    if not (number.isascii() and number.isdigit() and len(number) < 6 and int(number)):
        raise ImageError(f'"{option}" in "{text}" is no partition', "partition=1 is the first")
    return int(number)


def open_image(spec: ImageSpec, *, about_to_wait: AboutToWait = waits_for_nobody) -> FileSystem:
    """The file system in an image, which from now on is locked against writers. ImageError: it
    cannot be served.

    Images are only read, for now, whatever `spec.read_only` says.
    """
    device: BlockDevice = FileDevice(spec.file, about_to_wait=about_to_wait)
    try:
        part, name = _part_of(device, spec)
        kind, what, hint = probe(part)
        if kind is Kind.EXT4:
            return open_ext4(part, name)
        if kind is Kind.DISK:
            raise ImageError("it has a boot sector, but no file system that is known here")
        raise ImageError(f"it is {what}", hint)
    except ImageError as error:
        device.close()
        raise ImageError(f"{spec.file}: {error}", error.hint) from None
    except VfsError as error:
        device.close()
        raise ImageError(f"{spec.file}: {error.detail}", "check a copy with e2fsck -f") from None
    except BaseException:
        device.close()
        raise


def _part_of(device: BlockDevice, spec: ImageSpec) -> tuple[BlockDevice, str]:
    """The part of the image that is meant, and its name for messages."""
    if spec.partition is None:
        if probe(device)[0] is Kind.DISK:
            partitions = read_partitions(device)
            if partitions:
                raise ImageError(
                    f"it is a whole disk with the partitions {_listed(partitions)}",
                    f"name one of them: {spec.file},partition={partitions[0].number}",
                )
        return device, spec.file
    partitions = read_partitions(device)
    for partition in partitions:
        if partition.number == spec.partition:
            part = Slice(device, partition.first, partition.size)
            return part, f"{spec.file},partition={partition.number}"
    if not partitions:
        raise ImageError(f"there is no partition {spec.partition}: it has no partition table")
    raise ImageError(f"there is no partition {spec.partition}, only {_listed(partitions)}")


def _listed(partitions: list[Partition]) -> str:
    return "; ".join(str(partition) for partition in partitions)
