"""From a device to a file system that can be served: what has to be done first, in which order.

A superblock that was torn by a crash is found in its backups; a journal with something in it is
replayed (in memory where the image shall not be changed); inodes that were being removed are
removed. What cannot be written without damage is served read-only, and the log says why.

A file system that says itself that something may be wrong with it (it is marked as having errors,
or was not unmounted and has no journal) is checked as a whole before it is written: whoever
believes a bitmap that has blocks in use as free writes over somebody's data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from appliance import image_limits
from appliance.clock import Clock, SystemClock
from appliance.fsimage.device import BlockDevice, Overlay
from appliance.fsimage.durability import Durability
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import journal, layout
from appliance.fsimage.ext4.half_merged import HalfMergedError
from appliance.fsimage.ext4.journal.committer import Complete, Journal
from appliance.fsimage.ext4.journal.log import JournalLog, Log, WriteThrough
from appliance.fsimage.ext4.mmp import check_mmp
from appliance.fsimage.ext4.superblock import BACKUPS, SUPERBLOCK_BYTES, Superblock
from appliance.fsimage.ext4.volume import Volume
from appliance.trace import log
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import AboutToWait, waits_for_nobody

E2FSCK: Final = "e2fsck -fy repairs it; try it on a copy"

_BUT_SOUND: Final = ", but a check finds nothing wrong (e2fsck -f removes the mark)"

_PLACES: Final = [(layout.SUPERBLOCK_OFFSET, True), *((place, False) for place in BACKUPS.values())]
"""Where a superblock is, or may be, and whether what its checksum says is no matter."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a file system is served."""

    read_only: bool = False
    durability: Durability = Durability.FULL
    clock: Clock = field(default_factory=SystemClock)
    about_to_wait: AboutToWait = waits_for_nobody


def ready_volume(device: BlockDevice, name: str, terms: Terms) -> tuple[Volume, bool]:
    """The volume on `device`, recovered, and whether it can be written. ImageError: it cannot be
    served."""
    superblock = _find_superblock(device, name)
    check_mmp(Volume(device, superblock, name))
    writable = not (terms.read_only or device.read_only)
    if writable and superblock.why_not_written:
        log.warning("%s: served read-only: %s", name, superblock.why_not_written)
        writable = False
    if superblock.needs_recovery:
        if writable:
            journal.recover_in_place(Volume(device, superblock, name), _flush_of(device, terms))
        else:
            overlay = Overlay(device, superblock.block_bytes)
            journal.recover(Volume(device, superblock, name), overlay)
            device = overlay
        superblock = Superblock.read(device)
    doubt = _doubt(superblock)
    if doubt and writable:
        wrong = _what_is_wrong(device, superblock, name)
        writable = not wrong
        doubt += f", and served read-only: {wrong}; {E2FSCK}" if wrong else _BUT_SOUND
    if doubt:
        log.warning("%s: %s", name, doubt)
    return Volume(device, superblock, name), writable


def _doubt(superblock: Superblock) -> str:
    """Why there may be something wrong with it, according to itself."""
    if superblock.disk.s_state & layout.STATE_ERROR_FS:
        return "it is marked as having errors"
    if not superblock.disk.s_state & layout.STATE_VALID_FS:
        return "it was not unmounted"
    return ""


def _what_is_wrong(device: BlockDevice, superblock: Superblock, name: str) -> str:
    """The first thing that is, in words."""
    from appliance.fsimage.ext4.check import examine  # which is rarely needed here

    if superblock.blocks_count > image_limits.CHECKED_BLOCKS_MAX:
        return "it is too large to be checked here"
    log.info("%s: being checked", name)
    try:
        report = examine(device, name)
    except ImageError as error:
        return str(error)
    return str(report.findings[0]) if report.findings else ""


def _find_superblock(device: BlockDevice, name: str) -> Superblock:
    """The superblock. If a crash has torn it, what can be read of it, or a backup, is good enough
    to find the journal, in which it is whole. ImageError: there is no such way."""
    try:
        return Superblock.read(device)
    except HalfMergedError:
        raise
    except ImageError as error:
        for offset, trusted in _PLACES:
            found = _superblock_at(device, offset, trusted)
            if found is not None and _journal_has_superblock(device, found, name):
                log.warning("%s: %s, but the journal has another one", name, error)
                found.disk.s_feature_incompat |= layout.INCOMPAT_RECOVER
                return found
        raise


def _superblock_at(device: BlockDevice, offset: int, trusted: bool) -> Superblock | None:
    if offset + SUPERBLOCK_BYTES > device.size:
        return None
    try:
        return Superblock.parse(device.read(offset, SUPERBLOCK_BYTES), trusted=trusted)
    except (ImageError, VfsError):
        return None


def _journal_has_superblock(device: BlockDevice, found: Superblock, name: str) -> bool:
    """Whether the journal that `found` leads to has a superblock that is right."""
    try:
        overlay = Overlay(device, found.block_bytes)
        journal.replay_into(Volume(device, found, name), overlay)
        Superblock.read(overlay)
    except (ImageError, VfsError):
        return False
    return found.has_journal


def _flush_of(device: BlockDevice, terms: Terms) -> Callable[[], None]:
    """What makes writes durable, or just keeps their order, as was asked for."""
    return _nothing if terms.durability is Durability.PROCESS else device.flush


def _nothing() -> None:
    """The host keeps the order of writes as long as it runs."""


def open_journal(
    volume: Volume, terms: Terms, *, complete: Complete, failed: Callable[[VfsError], None]
) -> Journal:
    """The journal of a volume that shall be written."""
    flush = _flush_of(volume.device, terms)
    to: Log
    if volume.superblock.has_journal:
        ring = journal.ring_of(volume)
        ring.check_empty()
        ring.check_room()
        to = JournalLog(volume, ring, flush, terms.clock.wall)
    else:
        log.warning("%s: has no journal: a crash may damage it (tune2fs -j adds one)", volume.name)
        to = WriteThrough(volume, flush)
    return Journal(
        volume,
        to,
        terms.durability,
        complete=complete,
        failed=failed,
        about_to_wait=terms.about_to_wait,
    )
