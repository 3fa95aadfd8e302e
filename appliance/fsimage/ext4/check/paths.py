"""By which path the tree names an inode, for those that have findings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance.fsimage.ext4 import inode as inodes
from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.check.blocks import BlockWalk
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.directories import RawEntry, parse, printable
from appliance.vfs.errors import VfsError

_DEPTH_MAX: Final = 100


def name_findings(context: Context) -> None:
    """Add paths to the findings. Each directory on the way is read once."""
    findings = context.findings
    wanted: dict[int, dict[int, str]] = {}
    for finding in findings.all:
        for child in _up_from(context, finding.inode):
            wanted.setdefault(context.parents[child], {})[child] = ""
    walk = BlockWalk(context)
    for directory, children in wanted.items():
        for entry in _entries(context, walk, directory):
            if children.get(entry.inode) == "":
                children[entry.inode] = printable(entry.name)
    for at, finding in enumerate(findings.all):
        chain = list(_up_from(context, finding.inode))
        names = [wanted[context.parents[child]][child] for child in reversed(chain)]
        top = context.parents[chain[-1]] if chain else finding.inode
        if top == layout.EXT4_ROOT_INO and all(names):
            findings.name(at, "/" + "/".join(names))


def _up_from(context: Context, number: int) -> Iterator[int]:
    """An inode and those above it, below the root."""
    for _ in range(_DEPTH_MAX):
        if number in (0, layout.EXT4_ROOT_INO) or not context.parents[number]:
            return
        yield number
        number = context.parents[number]


def _entries(context: Context, walk: BlockWalk, number: int) -> Iterator[RawEntry]:
    inode = context.inode(number)
    has_type = context.has_feature(incompat=layout.INCOMPAT_FILETYPE)
    volume = context.volume
    pieces: list[tuple[bytes, int, int]] = []
    if inode.has_flag(layout.INLINE_DATA_FL):
        try:
            raw = inodes.inline_data(volume, inode)
        except VfsError:
            return
        split = len(inode.disk.i_block)
        pieces = [(raw, 4, split), (raw, split, len(raw))]
    for raw, start, end in pieces:
        yield from (e for e in parse(raw, start, end, has_type=has_type) if isinstance(e, RawEntry))
    if pieces:
        return
    for run in walk.runs(inode):
        for block in range(run.physical, run.physical + run.length) if run.logical >= 0 else ():
            raw = volume.device.read(block << volume.block_bits, volume.block_bytes)
            for entry in parse(raw, 0, len(raw), has_type=has_type):
                if isinstance(entry, RawEntry) and entry.inode:
                    yield entry
