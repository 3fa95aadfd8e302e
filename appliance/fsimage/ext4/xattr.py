"""Extended attributes that are kept inside the inode, behind its fields.

For now they are read for one thing: `system.data`, in which inline_data keeps what of a small file
or directory does not fit into i_block.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.layout import ext4_xattr_entry

INLINE_DATA_NAME: Final = (layout.XATTR_INDEX_SYSTEM, b"data")


def in_inode(body: bytes) -> Iterator[tuple[tuple[int, bytes], bytes]]:
    """Name (index of its prefix, rest) and value of each attribute in `body`, the bytes of an inode
    after its fields. ValueError: they make no sense.

    Values that are in an inode of their own (ea_inode) are left out.
    """
    if len(body) < 4 or struct.unpack_from("<I", body)[0] != layout.XATTR_MAGIC:
        return
    at = 4
    while at + 4 <= len(body) and body[at : at + 4] != b"\0\0\0\0":
        if at + ext4_xattr_entry.SIZE > len(body):
            raise ValueError("an entry reaches beyond the inode")
        entry = ext4_xattr_entry.decode(body, at)
        at += ext4_xattr_entry.SIZE
        name = body[at : at + entry.e_name_len]
        at += entry.e_name_len + 3 & ~3
        if entry.e_value_inum == 0:
            # Offsets of values count from the first entry.
            start = 4 + entry.e_value_offs
            value = body[start : start + entry.e_value_size]
            if len(value) != entry.e_value_size:
                raise ValueError("a value reaches beyond the inode")
            yield (entry.e_name_index, name), value
