"""The writer of the journal (J8 to J12 of log.py): what it has written, e2fsck and our own recovery
understand, and find the same."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from appliance.fsimage.device import Overlay
from appliance.fsimage.ext4 import journal, layout
from appliance.fsimage.ext4.journal.log import JournalLog
from appliance.fsimage.ext4.superblock import Superblock, superblock_checksum
from appliance.fsimage.ext4.volume import Volume
from tests.unit.fsimage.damage import MemoryDevice
from tests.unit.fsimage.ext4_images import make_image, run

KINDS = {
    "default": [],
    "32bit": ["-O", "^64bit"],
    "plain": ["-O", "^metadata_csum"],
    "plain-32bit": ["-O", "^metadata_csum,^64bit"],
    "ext3": ["-t", "ext3"],
    "seed": ["-O", "metadata_csum_seed"],
}
FREE = 6000
MAGIC = struct.pack(">I", layout.JBD2_MAGIC)


class Recorded(MemoryDevice):
    """A device that knows what was written when."""

    read_only = False
    raw: bytearray

    def __init__(self, raw: bytes) -> None:
        super().__init__(bytearray(raw))
        self.log: list[tuple[int, bytes] | None] = []

    def write(self, offset: int, data: object) -> None:
        for buffer in data:  # type: ignore[attr-defined]
            self.raw[offset : offset + len(buffer)] = buffer
            self.log.append((offset, bytes(buffer)))
            offset += len(buffer)

    def flush(self) -> None:
        self.log.append(None)


def image_of(tmp_path: Path, kind: str, block_bytes: int = 1024) -> bytes:
    size, of_journal = ("8M", "size=1") if block_bytes == 1024 else ("32M", "size=4")
    kinds = KINDS[kind] if kind == "ext3" else ["-t", "ext4", *KINDS[kind]]
    options = ["-b", str(block_bytes), *kinds, "-J", of_journal]
    return make_image(tmp_path / "fs.img", size, *options).read_bytes()


def opened(device: Recorded) -> tuple[Volume, JournalLog]:
    superblock = Superblock.read(device)
    volume = Volume(device, superblock, "image")
    return volume, JournalLog(volume, journal.ring_of(volume), device.flush, lambda: 7 * 10**9)


def crashed(raw: bytes | bytearray) -> bytes:
    """The image as one that needs recovery."""
    image = bytearray(raw)
    superblock = Superblock.read(MemoryDevice(image))
    superblock.disk.s_feature_incompat |= layout.INCOMPAT_RECOVER
    superblock.disk.encode_into(image, 1024)
    if superblock.has_metadata_csum:
        superblock.disk.s_checksum = superblock_checksum(bytes(image[1024:2048]))
        superblock.disk.encode_into(image, 1024)
    return bytes(image)


def by_us(image: bytes, size: int) -> dict[int, bytes]:
    device = MemoryDevice(bytearray(image))
    volume = Volume(device, Superblock.read(device), "image")
    overlay = Overlay(device, size)
    journal.recover(volume, overlay)
    return {number: overlay.read(number * size, size) for number in range(FREE, FREE + 300)}


def by_e2fsck(image: bytes, size: int, tmp_path: Path) -> dict[int, bytes]:
    file = tmp_path / "replayed.img"
    file.write_bytes(image)
    run(["e2fsck", "-E", "journal_only", "-p", file])
    raw = file.read_bytes()
    return {number: raw[number * size : (number + 1) * size] for number in range(FREE, FREE + 300)}


@pytest.mark.parametrize("block_bytes", [1024, 4096])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_replayed(tmp_path: Path, kind: str, block_bytes: int) -> None:
    """Transactions of all sizes, around the ring several times; some blocks begin with the magic
    (J5), some are revoked and not written again (J12)."""
    chance = random.Random(f"{kind} {block_bytes}")
    device = Recorded(image_of(tmp_path, kind, block_bytes))
    _, log = opened(device)
    model: dict[int, bytes] = {}
    for number in range(120):
        numbers = chance.sample(range(FREE, FREE + 300), chance.choice([1, 2, 5, 30, 200]))
        blocks = {
            block: (chance.choice([MAGIC, b""]) + chance.randbytes(64) * block_bytes)[:block_bytes]
            for block in numbers
        }
        revoked = set(chance.sample(range(FREE, FREE + 300), chance.choice([0, 0, 1, 20])))
        revoked -= blocks.keys()
        log.write(blocks, revoked)
        model.update(blocks)
        for block in revoked:
            model.pop(block, None)
        if log.wants_checkpoint:
            written = log.checkpoint()
            assert all(model.get(block, content) == content for block, content in written.items())
        if number % 20 == 10:
            image = crashed(device.raw)
            ours, theirs = (
                by_us(image, block_bytes),
                by_e2fsck(image, block_bytes, tmp_path),
            )
            assert ours == theirs
            assert all(ours[block] == content for block, content in model.items())
    log.checkpoint()
    log.close()
    raw = device.raw
    size = block_bytes
    assert all(raw[n * size : (n + 1) * size] == content for n, content in model.items())
    (tmp_path / "closed.img").write_bytes(raw)
    run(["e2fsck", "-f", "-n", tmp_path / "closed.img"])


def test_a_transaction_that_is_cut_off_did_not_happen(tmp_path: Path) -> None:
    """J1, J8: as long as the commit block is not there, nothing of it is replayed."""
    device = Recorded(image_of(tmp_path, "default"))
    _, log = opened(device)
    log.write({FREE: b"first".ljust(1024)}, ())
    before, begin = bytes(device.raw), len(device.log)
    log.write({FREE: b"later".ljust(1024), FREE + 1: b"x" * 1024}, ())
    writes = device.log[begin:]
    assert writes[-1] is None and writes[-3] is None, "a flush before the commit block, and after"
    image = bytearray(before)
    for write in writes:
        assert by_us(crashed(image), 1024)[FREE] == b"first".ljust(1024)
        if write is not None:
            image[write[0] : write[0] + len(write[1])] = write[1]
        if write is writes[-2]:
            break
    assert by_us(crashed(image), 1024)[FREE] == b"later".ljust(1024)


def test_the_tail_moves_only_when_everything_is_in_its_place(tmp_path: Path) -> None:
    """J11: in-place writes, a flush, the superblock of the journal, a flush."""
    device = Recorded(image_of(tmp_path, "default"))
    volume, log = opened(device)
    log.write({FREE + n: b"%d" % n * 1024 for n in range(9)}, ())
    begin = len(device.log)
    log.checkpoint()
    head = journal.ring_of(volume).physical(0) * 1024
    order = [None if each is None else each[0] for each in device.log[begin:]]
    assert order == [*((FREE + n) * 1024 for n in range(9)), None, head, None]
