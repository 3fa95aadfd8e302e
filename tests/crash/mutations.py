"""The bugs that the harness has to see (mutants.py): every invariant, broken."""

from __future__ import annotations

from typing import Final

from tests.crash.mutants import Mutant
from tests.crash.plan import Task


def _task(work: str, states: int = 60, around: str = "") -> Task:
    return Task("1k", work, 3, states, around=around)


_EVERY: Final = _task("every")
_GROUPS: Final = _task("groups")
_TURNS: Final = _task("many-turns-of-the-log", 120)

MUTANTS: Final = (
    # --- the log -----------------------------------------------------------------
    Mutant(
        "no flush before the commit block",
        "J8",
        "journal/log.py",
        "self._flush()  # J8",
        "pass",
        _EVERY,
    ),
    Mutant(
        "no flush after the commit block",
        "J9",
        "journal/log.py",
        "self._flush()  # J9",
        "pass",
        _EVERY,
    ),
    Mutant(
        "behind a commit block stays what was there",
        "J1",
        "journal/log.py",
        "[*pieces, self._zeros]",
        '[*pieces, b""]',
        _task("many-turns-of-the-log", 60, "commit-block"),
    ),
    Mutant(
        "blocks come to their places before the transaction is durable",
        "J10",
        "journal/log.py",
        "        self._flush()  # J8\n",
        "        write_in_place(self._device, self._bits, blocks)\n        self._flush()\n",
        _EVERY,
    ),
    Mutant(
        "an older copy is checkpointed over a newer one",
        "J10",
        "journal/log.py",
        "        self._images.update(blocks)\n\n    def _described",
        "        self._images = {**blocks, **self._images}\n\n    def _described",
        _TURNS,
    ),
    Mutant(
        "no flush after a checkpoint",
        "J11",
        "journal/log.py",
        "self._flush()  # J11",
        "pass",
        _TURNS,
    ),
    Mutant(
        "the log is given up before it was checkpointed",
        "J11",
        "journal/log.py",
        "        if images:\n            write_in_place(self._device, self._bits, images)\n",
        "        if self._begun:\n            self._point(self._head, self._sequence)\n"
        "            self._flush()\n"
        "        if images:\n            write_in_place(self._device, self._bits, images)\n",
        _TURNS,
    ),
    Mutant(
        "no revoke records",
        "J12",
        "journal/log.py",
        "pieces = [*self._revoke_blocks(revoked), *self._described(blocks)]",
        "pieces = [*self._described(blocks)]",
        _task("index-block-becomes-data"),
    ),
    Mutant(
        "a freed block is checkpointed all the same",
        "J12",
        "journal/log.py",
        "self._images.pop(number, None)  # J12",
        "pass",
        _task("directory-block-becomes-data", 120),
    ),
    Mutant(
        "blocks of directories are not revoked",
        "J12",
        "map_changer.py",
        "self._journaled: Final = inode.disk.i_mode >> 12 != FileType.REGULAR",
        "self._journaled: Final = False",
        _task("directory-block-becomes-data"),
    ),
    Mutant(
        "the log grows before the superblock speaks of it",
        "J13",
        "writer.py",
        "        self.journal.put_in_place(blocks)\n",
        "        with self.journal.state:\n"
        "            self.journal.publish(blocks, blocks, [], [])\n",
        _EVERY,
    ),
    Mutant(
        "the superblock changes at both of its ends",
        "J14",
        "writer.py",
        "Balance(layout.S_CHECKSUM_OFFSET, layout.S_LAST_MOUNTED_END - 4)",
        "Balance(layout.S_CHECKSUM_OFFSET, 0x300)",
        _task("many-turns-of-the-log", 60, "superblock"),
    ),
    Mutant(
        "an escaped copy does not say so",
        "J5",
        "journal/log.py",
        "                    flags |= layout.JBD2_FLAG_ESCAPE\n",
        "",
        _task("blocks-like-the-journals-own"),
    ),
    Mutant(
        "transactions are not numbered",
        "J2",
        "journal/log.py",
        "self._sequence = self._sequence + 1 & MASK32",
        "pass",
        _EVERY,
    ),
    Mutant(
        "the checksum of a copy has a wrong seed",
        "J1",
        "journal/log.py",
        'crc32c(self._ring.seed, struct.pack(">I", self._sequence))',
        'crc32c(MASK32, struct.pack(">I", self._sequence))',
        _EVERY,
    ),
    # --- transactions ------------------------------------------------------------
    Mutant(
        "a freed block is used again at once",
        "J15",
        "journal/committer.py",
        "        found: Extents = []\n        if not self._durable:",
        "        found, self._running.freed = self._running.freed, []\n"
        "        if not self._durable:",
        _task("freed-block-is-wanted-again"),
    ),
    Mutant(
        "the superblock is not in the transaction",
        "J16",
        "writer.py",
        "            blocks.update(self._superblock())\n",
        "            self._superblock()\n",
        _task("large-files-go"),
    ),
    Mutant(
        "what is acknowledged was never written",
        "J9",
        "journal/committer.py",
        "if self._durability is Durability.LAZY and",
        "if",
        _EVERY,
    ),
    # --- operations --------------------------------------------------------------
    Mutant(
        "an orphan is on no list",
        "J17",
        "orphans.py",
        "        operation.last_orphan = inode.number\n",
        "",
        _task("large-files-go"),
    ),
    Mutant(
        "orphans are not finished at the start",
        "J17",
        "filesystem.py",
        "        removal.finish_what_was_begun(self)\n",
        "",
        _task("large-files-go"),
    ),
    Mutant(
        "the tail of a truncated file is not zero",
        "J18",
        "content.py",
        "    zeroing.zero_rest(filesystem, operation, inode, min(size, inode.size))\n",
        "",
        _task("tail-is-extended"),
    ),
    Mutant(
        "a block is made zero where it is",
        "J18",
        "zeroing.py",
        "    new, _ = operation.allocate(old + 1, 1)\n",
        "    volume.device.write(\n"
        "        (old << bits) + offset - (logical << bits), [bytes(end - offset)]\n"
        "    )\n"
        "    return\n"
        "    new, _ = operation.allocate(old + 1, 1)\n",
        _task("tail-is-extended", 150),
    ),
    Mutant(
        "a new block is not written whole",
        "J18",
        "writing.py",
        "                at -= before\n"
        "                data = [*zeros(before), *data, *zeros(after)]\n",
        "                data = [*data, *zeros(after)]\n",
        _task("seldom"),
    ),
    Mutant(
        "data is written after the commit that names it",
        "J8",
        "writing.py",
        "        if portion.transfer(buffers) and portion.finish():\n            return",
        "        if portion.finish():\n            node.filesystem.commit()\n"
        "            portion.transfer(buffers)\n            return",
        _EVERY,
    ),
    Mutant(
        "data is written after it was published",
        "J8",
        "writing.py",
        "        if portion.transfer(buffers) and portion.finish():\n            return",
        # Long enough for somebody else's commit to come between, on any machine.
        "        if portion.finish():\n            __import__('time').sleep(0.01)\n"
        "            portion.transfer(buffers)\n            return",
        _task("crowd", 150),
    ),
    Mutant(
        "a moved directory keeps its parent",
        "J19",
        "changes.py",
        "        directory_changes.set_parent(self._node.directory, operation, above.number)\n",
        "",
        _task("directories-move"),
    ),
    Mutant(
        "a directory that leaves is still counted",
        "J19",
        "changes.py",
        "        _link_from_below(self._filesystem, before, -1)\n",
        "",
        _task("directories-move"),
    ),
    Mutant(
        "a removed directory is still counted",
        "J19",
        "changes.py",
        "            _link_from_below(filesystem, operation.inode(directory.inode.number), -1)\n",
        "",
        _GROUPS,
    ),
    Mutant(
        "blocks of extents have no checksum",
        "J20",
        "extent_tree.py",
        "        if self._volume.has_metadata_csum:\n            tail",
        "        if False:\n            tail",
        _task("index-block-becomes-data", 10),
    ),
    Mutant(
        "the checksum of an inode has the seed of the file system",
        "J20",
        "inode.py",
        "checksum = crc32c(inode.seed(volume), raw)",
        "checksum = crc32c(volume.seed, raw)",
        _task("every", 10),
    ),
    Mutant(
        "a block of attributes is not freed",
        "J20",
        "xattr_changes.py",
        "        op.free(before, 1, metadata=True)\n",
        "        pass\n",
        _task("attributes-come-and-go", 10),
    ),
    Mutant(
        "the first state of an inode in a transaction counts",
        "J20",
        "finishing.py",
        "    unfinished.inodes.update(changed)\n",
        "    for number, inode in changed.items():\n"
        "        unfinished.inodes.setdefault(number, inode)\n",
        _task("many-turns-of-the-log", 10),
    ),
    Mutant(
        "blocks of directories get no checksum when their transaction is closed",
        "J20",
        "finishing.py",
        "            unwritten[number] = seal(unwritten[number])\n",
        "            pass\n",
        _task("every", 10),
    ),
    Mutant(
        "the checksum of a bitmap is that of the transaction before",
        "J20",
        "finishing.py",
        "        _note_bitmaps(volume, group, numbers)\n",
        "",
        _task("every", 10),
    ),
    # --- recovery ----------------------------------------------------------------
    Mutant(
        "no flush between the replay and the end of the journal",
        "J11",
        "journal/recovery.py",
        "    flush()\n    volume.device.write(ring.physical(0)",
        "    volume.device.write(ring.physical(0)",
        _task("many-turns-of-the-log", 30, "commit-block"),
        nested_every=1,
    ),
    Mutant(
        "what was revoked is replayed",
        "J3",
        "journal/recovery.py",
        "self.copies.pop(block, None)  # J3, of what came before",
        "pass",
        _task("index-block-becomes-data"),
    ),
    Mutant(
        "a number that is in the log is used again after a recovery",
        "J2",
        "journal/recovery.py",
        "return ring, last + 1 & MASK32",
        "return ring, ring.superblock.s_sequence",
        _task("same-again", 40, "commit-block"),
    ),
    Mutant(
        "the first copy of a block counts",
        "J4",
        "journal/recovery.py",
        "self.copies[block] = copy  # J4",
        "self.copies.setdefault(block, copy)",
        _task("every", 30),
    ),
)
