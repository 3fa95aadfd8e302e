"""Whether everything in use can be reached from the root, and has as many names as it says."""

from __future__ import annotations

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.bits import Bits
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.directories import directories_of
from appliance.fsimage.ext4.check.findings import Code
from appliance.vfs.interface import FileType


def check_links(context: Context) -> None:
    """All of it."""
    if context.kinds[layout.EXT4_ROOT_INO] != FileType.DIRECTORY:
        context.wrong(Code.UNREACHABLE, "there is no root directory")
    _check_connected(context)
    hidden = context.superblock.hidden_inodes
    for number in range(layout.EXT4_ROOT_INO, context.inodes_count + 1):
        if (
            context.kinds[number]
            and context.may_be_named(number)
            and number not in hidden
            and context.names[number] != context.links[number]
        ):
            _compare(context, number)


def _compare(context: Context, number: int) -> None:
    names, links = context.names[number], context.links[number]
    is_directory = context.kinds[number] == FileType.DIRECTORY
    if number in context.orphans and not links:
        return
    if is_directory:
        dir_nlink = context.has_feature(ro_compat=layout.RO_COMPAT_DIR_NLINK)
        if links == 1 and (dir_nlink or names > layout.EXT4_LINK_MAX):
            return
    elif not names:
        context.wrong(Code.UNREACHABLE, f"has {links} links, but no name", number)
        return
    context.wrong(Code.LINK_COUNT, f"says that it has {links} links, but has {names}", number)


def _check_connected(context: Context) -> None:
    """Every directory hangs on the root, and knows on what it hangs."""
    connected = Bits(context.inodes_count + 1)
    connected.add(layout.EXT4_ROOT_INO)
    looked_at = Bits(context.inodes_count + 1)
    for number in directories_of(context):
        _climb(context, number, connected, looked_at)
        above = context.parents[number]
        if number == layout.EXT4_ROOT_INO:
            above = number
        said = context.dotdots[number]
        if above and said and said != above:
            context.wrong(Code.DOTS, f'has {said} as "..", but is in directory {above}', number)


def _climb(context: Context, number: int, connected: Bits, looked_at: Bits) -> None:
    """From a directory upwards, until it is known whether that leads to the root."""
    path = []
    at = number
    while at not in looked_at and at not in connected:
        looked_at.add(at)
        path.append(at)
        at = context.parents[at]
        if not at:
            break
    if at and at in connected:
        for each in path:
            connected.add(each)
        return
    if not path:
        return
    top = path[-1]
    if top in context.orphans and not context.links[top]:
        return
    if not at:
        context.wrong(Code.UNREACHABLE, "is a directory without a name", top)
    elif at in path:
        context.wrong(Code.UNREACHABLE, "is a directory that lies in itself", at)
