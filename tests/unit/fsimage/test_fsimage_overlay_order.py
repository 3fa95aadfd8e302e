"""What an overlay file writes when: its map and its headers after a write that failed, and the time
of its image."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import image_limits
from appliance.fsimage.device import FileDevice
from appliance.fsimage.overlay_format import HEADER_BYTES, Base, Header
from appliance.fsimage.overlays import merge, open_overlay
from appliance.vfs.errors import Code, VfsError
from tests.unit.fsimage.overlay_crash import BASE, BytesDevice, new_overlay, reopen


@pytest.mark.parametrize("error", [Code.NOSPC, Code.IO])
def test_a_map_that_could_not_be_written_is_written_with_the_next_write(error: Code) -> None:
    """Also where that is one in place: what was written eagerly survives a kill."""

    class WithoutMap(BytesDevice):
        fails = False

        def write(self, offset: int, data: Any) -> None:
            if self.fails and offset < data_begins:
                raise VfsError(error, "no map")
            super().write(offset, data)

    data_begins = Header.new(Base(len(BASE), 1, bytes(32))).data_offset
    store = WithoutMap(b"")
    overlay = new_overlay(store, eager=True)
    store.fails = True
    with pytest.raises(VfsError):
        overlay.write(0, [b"x" * 4096])
    store.fails = False
    overlay.write(0, [b"y" * 4096])
    assert reopen(store.raw).read(0, 8192) == b"y" * 4096 + BASE[4096:8192]


def test_nothing_is_called_durable_where_nobody_knows_which_header_counts() -> None:
    class WithoutHeader(BytesDevice):
        fails = False

        def write(self, offset: int, data: Any) -> None:
            if self.fails and offset < 2 * HEADER_BYTES:
                raise VfsError(Code.IO, "no header")
            super().write(offset, data)

    store = WithoutHeader(b"")
    overlay = new_overlay(store)
    overlay.write(0, [b"x" * 4096])
    overlay.flush()
    store.fails = True
    with pytest.raises(VfsError):
        overlay.snapshots.create("one", 0)
    store.fails = False
    overlay.write(0, [b"y" * 4096])
    with pytest.raises(VfsError, match="half-way"):
        overlay.flush()


def test_the_time_of_the_image_is_durable_before_an_overlay_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge changes it, and fdatasync does not keep it: after a power cut, changes that were
    acknowledged would belong to another image."""
    image, file = tmp_path / "image", tmp_path / "changes"
    image.write_bytes(BASE)
    done: list[tuple[str, int]] = []
    really = {name: getattr(os, name) for name in ("fsync", "pwritev")}

    def noted(name: str) -> Callable[..., Any]:
        def call(handle: int, *words: Any) -> Any:
            done.append((name, os.fstat(handle).st_ino))
            return really[name](handle, *words)

        return call

    for name in really:
        monkeypatch.setattr(os, name, noted(name))
    overlay = open_overlay(str(file), FileDevice(image), str(image))
    kept, header = ("fsync", image.stat().st_ino), ("pwritev", file.stat().st_ino)
    assert done.index(kept) < done.index(header)
    overlay.write(0, [b"m" * 5000])
    overlay.close()
    done.clear()
    merge(str(image), str(file))
    changed = ("pwritev", image.stat().st_ino)
    assert len(done) - done[::-1].index(changed) <= done.index(kept)
    assert header in done[done.index(kept) :]


def test_an_overlay_that_somebody_cuts_off_is_not_made_long_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was cut off would be zeros, where changes were."""
    monkeypatch.setattr(image_limits, "OVERLAY_GROWS_BY", 0)
    image, file = tmp_path / "image", tmp_path / "changes"
    image.write_bytes(BASE)
    overlay = open_overlay(str(file), FileDevice(image), str(image))
    overlay.write(0, [b"m" * 4096])
    os.truncate(file, Header.new(Base(len(BASE), 1, bytes(32))).data_offset)
    for at in range(4096, 5 * 4096, 4096):
        with pytest.raises(VfsError, match="shorter"):
            overlay.write(at, [b"m" * 4096])
    with pytest.raises(VfsError, match="shorter"):
        overlay.read(0, 4096)
