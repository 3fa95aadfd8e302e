"""Multiple mount protection (kernel document: "Multi-mount Protection").

With the feature mmp, a block says who has the file system mounted: a host that does writes a new
number and its name there every few seconds. The number says "clean" when nobody has.

We keep no such watch, so what this check allows is what needs none: the block says that nobody has
it mounted, and the lock on the image keeps others of our kind out. A host that shares the storage
and looks at nothing but the block would not see us; that is why it is called only for images whose
owner asked for mmp, and why a doubtful block is a refusal.
"""

from __future__ import annotations

from typing import Annotated, Final

from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.crc import MASK32, crc32c
from appliance.fsimage.ext4.layout import INCOMPAT_MMP
from appliance.fsimage.ext4.record import Record, at, le16, le32, le64, record
from appliance.fsimage.ext4.volume import Volume
from appliance.vfs.interface import Buffer

EXT4_MMP_MAGIC: Final = 0x004D4D50
EXT4_MMP_SEQ_CLEAN: Final = 0xFF4D4D50
EXT4_MMP_SEQ_FSCK: Final = 0xE24D4D50

bytes64 = Annotated[bytes, "<64s"]
bytes32 = Annotated[bytes, "<32s"]

_CLEAR: Final = (
    "unmount it there; if that host is gone for good, tune2fs -f -E clear_mmp IMAGE says so"
)


@record(size=1024)
class mmp_struct(Record):
    """What is at the start of the block."""

    mmp_magic: le32 = at(0x0)
    mmp_seq: le32 = at(0x4)
    mmp_time: le64 = at(0x8)
    mmp_nodename: bytes64 = at(0x10)
    mmp_bdevname: bytes32 = at(0x50)
    mmp_check_interval: le16 = at(0x70)
    mmp_checksum: le32 = at(0x3FC)


def check_mmp(volume: Volume) -> None:
    """ImageError if somebody has the file system mounted, or seems to. Without the feature mmp,
    nobody can say."""
    disk = volume.superblock.disk
    if not disk.s_feature_incompat & INCOMPAT_MMP:
        return
    if not volume.has_blocks(disk.s_mmp_block):
        raise ImageError(f"its mmp block {disk.s_mmp_block} cannot be", _CLEAR)
    seed = volume.seed if volume.has_metadata_csum else None
    refuse_if_in_use(volume.device.read(disk.s_mmp_block << volume.block_bits, 1024), seed)


def refuse_if_in_use(block: Buffer, seed: int | None) -> None:
    """ImageError unless the mmp block `block` says that nobody has the file system mounted. `seed`
    is that of its checksum, None if it has none."""
    mmp = mmp_struct.decode(block)
    if mmp.mmp_magic != EXT4_MMP_MAGIC:
        raise ImageError("its mmp block is damaged", _CLEAR)
    if mmp.mmp_seq == EXT4_MMP_SEQ_FSCK:
        raise ImageError(f"it is being checked by e2fsck on {_who(mmp)}", _CLEAR)
    if mmp.mmp_seq != EXT4_MMP_SEQ_CLEAN:
        raise ImageError(f"it is in use by {_who(mmp)}", _CLEAR)
    # Last, because every other answer is a refusal anyway, and says more.
    if seed is not None and mmp.mmp_checksum != crc32c(seed, bytes(block[:0x3FC])) & MASK32:
        raise ImageError("its mmp block has a wrong checksum", _CLEAR)


def _who(mmp: mmp_struct) -> str:
    """The host and the device there, as the block has them. They may be anything."""
    node, device = (
        "".join(
            c if c.isprintable() else "?" for c in text.split(b"\0")[0].decode("utf-8", "replace")
        )
        for text in (mmp.mmp_nodename, mmp.mmp_bdevname)
    )
    return f'host "{node}" (as "{device}")' if node else "a host that has not said its name"
