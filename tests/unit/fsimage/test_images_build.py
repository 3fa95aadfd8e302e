"""The demo image: the same bytes every time, and one of everything in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from appliance.vfs.interface import FileType
from tests.unit.fsimage.ext4_images import contents, e2fsck, open_ro, view

BUILD = Path(__file__).parents[3] / "images" / "build.py"


def build(output: Path, umask: int = 0o022, **environment: str) -> bytes:
    subprocess.run(
        [sys.executable, BUILD, output],
        check=True,
        umask=umask,
        env={**os.environ, **environment},
    )
    return output.read_bytes()


def test_the_demo_image(tmp_path: Path) -> None:
    image = tmp_path / "demo.img"
    raw = build(image)
    assert build(tmp_path / "again.img", 0o077, TZ="Asia/Tokyo", MKE2FS_CONFIG="/dev/null") == raw
    e2fsck(image)
    filesystem = open_ro(image)
    found = {bytes.fromhex(path): what for path, what in view(filesystem).items()}
    assert {what["mode"] >> 12 for what in found.values()} == set(FileType)
    assert len(found[b"./many"]["names"]) == 5000
    assert found[b"./owners/large-numbers"]["uid"] == 4_000_000_000
    assert found[b"./special/large-minor"]["rdev"] == [259, 65000]
    assert found[b"./times/15032385535"]["times"][1] == 15_032_385_535_123_456_789
    assert found[b"./times/-2147483648"]["times"][1] == -2_147_483_647_876_543_211
    assert found[b"./links/hard-1"]["nlink"] == 3
    epoch = 1_218_153_600 * 10**9
    assert all(
        set(what["times"]) == {epoch} for path, what in found.items() if b"/times/" not in path
    )
    node = filesystem.root().lookup(b"files").lookup(b"large")
    assert b"".join(contents(node))[8_000_000:8_000_016] == b"000000008000000\n"
    filesystem.close()
