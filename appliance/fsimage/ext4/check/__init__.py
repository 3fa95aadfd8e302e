"""Whether a file system is sound: our own e2fsck -fn, which repairs nothing and writes nowhere.

    findings.py     what is found, in words              context.py   what the passes share
    groups.py       descriptors, backups                 bitmaps.py   the bitmaps and the counts
    system.py       journal, orphans, resizing           inodes.py    who has which blocks
    fields.py       an inode agrees with itself          blocks.py    all blocks of an inode
    xattrs.py       extended attributes                  directories.py, index.py   names
    links.py        is everything reached, and counted   paths.py     names for what was found

The order is e2fsck's: what the inodes say is believed first, then what the names say, and at last
the bitmaps and counts are compared with what was found. In contrast to the reader in the package
above, which stops at the first thing that is wrong with an object, this goes on behind it.

A dirty journal is replayed in memory first: what is checked is what a mount would see.

What is not compared: the usage counted in quota files, what is in fast commits, and the log of a
journal that needs no replay.
"""

from __future__ import annotations

from appliance.fsimage.device import BlockDevice, Overlay
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4 import journal
from appliance.fsimage.ext4.check import bitmaps, groups, links, paths, system
from appliance.fsimage.ext4.check.context import Context, Progress, silent
from appliance.fsimage.ext4.check.directories import DirectoryScan
from appliance.fsimage.ext4.check.findings import Code, Finding, Findings, Report
from appliance.fsimage.ext4.check.inodes import InodeScan
from appliance.fsimage.ext4.half_merged import HalfMergedError
from appliance.fsimage.ext4.superblock import Superblock, first_backup
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.errors import VfsError

__all__ = ["Code", "Finding", "Progress", "Report", "check", "examine"]


def check(device: BlockDevice) -> list[Finding]:
    """Everything that is wrong with the file system on `device`. ImageError: it cannot be checked,
    because not even a backup of its superblock makes sense, because an overlay is half merged into
    it, or because it cannot be read."""
    return examine(device, "the image").findings


def examine(device: BlockDevice, name: str, progress: Progress = silent) -> Report:
    """The same, with what else there is to say; `name` is for messages."""
    findings = Findings()
    notes: list[str] = []
    try:
        superblock = _superblock(device, findings)
        groups.unusable(superblock)
        if superblock.needs_recovery:
            device, superblock = _replayed(device, superblock, name, findings, notes)
        context = Context(Volume(device, superblock, name), findings, progress)
        context.notes.extend(notes)
        return _run(context)
    except VfsError as error:
        raise ImageError(error.detail) from None


def _run(context: Context) -> Report:
    groups.check_groups(context)
    system.Orphans(context).collect()
    InodeScan(context).run()
    system.check_journal(context)
    system.check_resize_inode(context)
    DirectoryScan(context).run()
    links.check_links(context)
    counts = bitmaps.BitmapCheck(context)
    counts.run()
    paths.name_findings(context)
    blocks_max = context.superblock.blocks_count
    return Report(
        context.findings.all,
        context.findings.more,
        context.notes,
        context.inodes_count - counts.free_inodes,
        context.inodes_count,
        blocks_max - (counts.free_clusters << context.cluster_bits),
        blocks_max,
    )


def _superblock(device: BlockDevice, findings: Findings) -> Superblock:
    """The superblock, or a backup of one that cannot be used."""
    try:
        return Superblock.read(device)
    except HalfMergedError:
        raise
    except ImageError as error:
        reason = error
    backup = first_backup(device)
    if backup is None:
        raise reason
    findings.add(Code.SUPERBLOCK, 0, f"the superblock cannot be used: {reason}")
    return backup[1]


def _replayed(
    device: BlockDevice,
    superblock: Superblock,
    name: str,
    findings: Findings,
    notes: list[str],
) -> tuple[BlockDevice, Superblock]:
    """The device as it is after its journal was replayed."""
    overlay = Overlay(device, superblock.block_bytes)
    try:
        journal.recover(Volume(device, superblock, name), overlay)
        after = Superblock.read(overlay)
        groups.unusable(after)
    except (ImageError, VfsError) as error:
        findings.add(Code.JOURNAL, 0, str(error))
        return device, superblock
    notes.append("the journal was replayed in memory: what was checked is what a mount would see")
    return overlay, after
