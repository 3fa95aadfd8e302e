"""What a merge writes into an image, in which order.

While it goes on, the image is neither what it was nor what it will be. The overlay says so, but an
image is also opened without its overlay, by anybody. So the image says so as well: each ext2, ext3
or ext4 file system in it that is going to change, in a partition or without one, has a mark in its
superblock (ext4/half_merged.py), with which nobody takes it for a file system.

M1  The overlay has the block that a mark goes into, changed or not, and is durable, before it says
    that a merge has begun (MARKING). So nothing is lost below a mark.
M2  That is durable before the first mark is written, and the marks are before the overlay says so
    (MARKED). Only after that are blocks changed.
M3  The sector of each mark is left out then, and written when everything else is durable: a file
    system without a mark is as before, or finished.
M4  The image is durable before the overlay is emptied.

Whoever comes back to a merge that was stopped anywhere does the rest of this again, and all of it
if there is doubt: the overlay changes no more. But a file system that is finished can be used,
although the overlay is not empty yet. Then to write those blocks again would be to damage it, so
what has lost its mark has to be as the overlay says, or the merge is refused.

Where no file system is recognised there is nothing to mark, and only the overlay says it. Such are
also the merges of versions that knew no marks; when they are gone on with, they get them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from appliance.fsimage.device import BlockDevice
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.half_merged import (
    MARKED_OFFSET,
    OWNER_BYTES,
    SECTOR_BYTES,
    Mark,
    has_file_system,
    mark_in,
)
from appliance.fsimage.overlay_file import OverlayFile
from appliance.fsimage.overlay_format import Base, Header, MergeStage
from appliance.fsimage.partition import read_partitions

_PUT_BACK: Final = (
    "if the merge was finished, remove the overlay; otherwise put back the image as the merge left"
    " it, or with its time as it was before"
)


@dataclass(frozen=True, slots=True)
class _Place:
    """A range of the device that a file system is in."""

    first: int
    size: int

    @property
    def sector(self) -> int:
        """Where its mark is put."""
        return self.first + MARKED_OFFSET


def of_another(image: str, wanted: Base, there: Base) -> ImageError:
    """The error that an overlay of `wanted` does not belong to what is there."""
    return ImageError(
        f"it belongs to another image than {image}: {wanted.difference(there)}",
        wanted.remedy(there, image),
    )


class Merging:
    """One merge, from the first block to the last."""

    def __init__(self, overlay: OverlayFile, base: BlockDevice, header: Header) -> None:
        """`base` is what the overlay is above, and is written to."""
        self._overlay = overlay
        self._base = base
        self._header = header
        self._owner: Final = header.base.owner(OWNER_BYTES)
        self._places: Final = [
            place for place in _places_in(overlay) if overlay.has_changes(place.first, place.size)
        ]
        """The file systems that change, as the overlay shows them."""

    # --- whether it may be --------------------------------------------------------------------

    def check(self, there: Base, image: str) -> None:
        """ImageError if the changes do not belong into the image, which is `there`, and of the
        right size. Of one that is half merged, little else is as it was."""
        header = self._header
        wanted = header.base
        marks = list(map(self._mark, self._places))
        for mark in marks:
            if mark is not None and mark.owner != self._owner:
                raise ImageError(f"another overlay is half merged into {image}", mark.remedy)
        match header.stage:
            case MergeStage.NOT_BEGUN if wanted.difference(there):
                raise of_another(image, wanted, there)
            case MergeStage.MARKING if not any(marks):
                # A mark that did not come through may have left its time.
                if wanted.difference(replace(there, modified_ns=wanted.modified_ns)):
                    raise of_another(image, wanted, there)
            case MergeStage.MARKED if not (
                self._places and all(map(self._is_in_order, self._places))
            ):
                if not there.modified_ns or wanted.difference(there):
                    raise ImageError(
                        f"it was being merged into {image}, which is not half merged, but was"
                        " written to or replaced since",
                        _PUT_BACK,
                    )
                # The image from before the merge, put back.
                self._header = replace(header, stage=MergeStage.NOT_BEGUN)

    def _mark(self, place: _Place) -> Mark | None:
        return mark_in(self._base.read(place.sector, SECTOR_BYTES))

    def _is_in_order(self, place: _Place) -> bool:
        """Whether a file system that was marked still is, or is finished."""
        if self._mark(place) is not None:
            return True
        for offset, length in self._overlay.changes():
            start = max(offset, place.first)
            count = min(offset + length, place.first + place.size) - start
            if count > 0 and self._base.read(start, count) != self._overlay.read(start, count):
                return False
        return True

    # --- doing it ------------------------------------------------------------------------------

    def run(self, name: str) -> int:
        """Merge; how many bytes. `name` of the overlay is for the marks."""
        stage = MergeStage.UNMARKED
        merged = sum(length for _, length in self._overlay.changes())
        if self._places:
            if self._header.stage is not MergeStage.MARKED:
                self._put_marks(name)
            stage = MergeStage.MARKED
        self._overlay.tell_stage(stage)
        late = sorted(place.sector for place in self._places)
        for offset, length in self._overlay.changes():
            for start, end in _without(offset, offset + length, late):
                self._copy(start, end - start)
        self._base.flush()
        if late:
            for sector in late:
                self._copy(sector, SECTOR_BYTES)
            self._base.flush()
        return merged

    def _put_marks(self, name: str) -> None:
        for place in self._places:
            self._overlay.hold(place.sector)
        begun = self._header.stage is not MergeStage.UNMARKED
        self._overlay.tell_stage(MergeStage.MARKING if begun else MergeStage.UNMARKED)
        mark = Mark(self._owner, name)
        for place in self._places:
            sector = self._overlay.read(place.sector, SECTOR_BYTES)
            self._base.write(place.sector, [mark.put(sector)])
        self._base.flush()

    def _copy(self, offset: int, count: int) -> None:
        self._base.write(offset, [self._overlay.read(offset, count)])


def _places_in(device: BlockDevice) -> list[_Place]:
    """The file systems on a device that could be served from it."""
    whole = _Place(0, device.size)
    if _is_file_system(device, whole):
        return [whole]
    try:
        partitions = read_partitions(device)
    except ImageError:
        return []
    places = [_Place(partition.first, partition.size) for partition in partitions]
    return [place for place in places if _is_file_system(device, place)]


def _is_file_system(device: BlockDevice, place: _Place) -> bool:
    if place.size < MARKED_OFFSET + SECTOR_BYTES:
        return False
    return has_file_system(device.read(place.sector, SECTOR_BYTES))


def _without(start: int, end: int, sectors: list[int]) -> Iterator[tuple[int, int]]:
    """A range, as begin and end, without these sectors, which are in order."""
    for sector in sectors:
        if start < sector + SECTOR_BYTES and sector < end:
            if start < sector:
                yield start, sector
            start = sector + SECTOR_BYTES
    if start < end:
        yield start, end
