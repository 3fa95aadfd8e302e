"""The index of a directory, all of it ("Hash Tree Directories").

Every block of the directory has to occur in it once. What the index promises of a leaf is a range
of hashes; whether the names keep it is seen when the leaf is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from appliance.fsimage.ext4 import layout
from appliance.fsimage.ext4.check.context import Context
from appliance.fsimage.ext4.check.findings import Code
from appliance.fsimage.ext4.crc import crc32c
from appliance.fsimage.ext4.hash import TEA, NameHash
from appliance.fsimage.ext4.layout import dx_countlimit, dx_entry, dx_root, dx_tail

_HASH_END: Final = 1 << 32
_INFO_BYTES: Final = 8
_INCOMPAT_FLAG: Final = 1

BlockAt = Callable[[int], bytes | None]
Wrong = Callable[[Code, str], None]


class IndexCheck:
    """Reads the index of one directory."""

    def __init__(
        self, context: Context, seed: int, block_count: int, block_at: BlockAt, wrong: Wrong
    ) -> None:
        self._context: Final = context
        self._seed: Final = seed
        self._block_count: Final = block_count
        self._block_at: Final = block_at
        self._wrong: Final = wrong
        self.nodes: Final = {0}
        """Blocks of the index itself."""
        self.leaves: Final[dict[int, tuple[int, int]]] = {}
        """Lowest hash, and the first that is too high, of each leaf."""
        self.hash: NameHash | None = None
        """None: the index cannot be read."""

    def run(self) -> None:
        """Read everything."""
        raw = self._block_at(0)
        if raw is None:
            return
        root = dx_root.decode(raw)
        large = self._context.has_feature(incompat=layout.INCOMPAT_LARGEDIR)
        problem = ""
        if root.reserved_zero or root.info_length != _INFO_BYTES:
            problem = "a damaged root"
        elif root.hash_version > TEA:
            problem = f"the hash version {root.hash_version}"
        elif root.unused_flags & _INCOMPAT_FLAG:
            problem = "a flag that is not known"
        elif root.indirect_levels > (2 if large else 1):
            problem = f"{root.indirect_levels + 1} levels"
        if problem:
            self._complain(problem)
            return
        disk = self._context.disk
        unsigned = bool(disk.s_flags & layout.FLAGS_UNSIGNED_HASH)
        self.hash = NameHash(root.hash_version, disk.s_hash_seed, unsigned=unsigned)
        self._node(raw, layout.DX_ROOT_ENTRIES_OFFSET, root.indirect_levels, 0, (0, _HASH_END))

    def _complain(self, problem: str) -> None:
        self._wrong(Code.INDEX, f"has an index with {problem}")

    def _node(
        self, raw: bytes, offset: int, levels: int, logical: int, limits: tuple[int, int]
    ) -> None:
        """One block of the index, with `levels` of them below."""
        head = dx_countlimit.decode(raw, offset)
        has_tail = self._context.superblock.has_metadata_csum
        tail_bytes = dx_tail.SIZE if has_tail else 0
        room = (len(raw) - offset - tail_bytes) // dx_entry.SIZE
        if head.limit != room or not 0 < head.count <= room:
            self._complain(f"{head.count} of {head.limit} entries in block {logical}")
            return
        end = offset + head.count * dx_entry.SIZE
        if has_tail:
            self._check_checksum(raw, end, offset + room * dx_entry.SIZE, logical)
        words = struct.unpack(f"<{2 * head.count}I", raw[offset:end])
        keys = [limits[0], *words[2::2], limits[1]]
        for low, high, block in zip(keys, keys[1:], words[1::2], strict=False):
            if low > high or not limits[0] <= low:
                self._complain(f"hashes that do not ascend, in block {logical}")
            self._child(block, levels, (low, high))

    def _check_checksum(self, raw: bytes, end: int, tail_at: int, logical: int) -> None:
        tail = dx_tail.decode(raw, tail_at)
        covered = raw[:end] + raw[tail_at : tail_at + 4] + b"\0\0\0\0"
        if crc32c(self._seed, covered) != tail.dt_checksum:
            text = f"has a wrong checksum in block {logical} of its index"
            self._wrong(Code.DIRECTORY_CHECKSUM, text)

    def _child(self, block: int, levels: int, limits: tuple[int, int]) -> None:
        if not 0 < block < self._block_count:
            self._complain(f"block {block}, which does not exist")
        elif block in self.nodes or block in self.leaves:
            self._complain(f"block {block} twice")
        elif not levels:
            self.leaves[block] = limits
        else:
            self.nodes.add(block)
            raw = self._block_at(block)
            if raw is None:
                return
            inode, length = struct.unpack_from("<IH", raw)
            if inode or length not in (len(raw), 0, 0xFFFF):
                # Whoever reads without the index takes it for a block with one empty entry.
                self._complain(f"no beginning in block {block}")
            self._node(raw, layout.DX_NODE_ENTRIES_OFFSET, levels - 1, block, limits)
