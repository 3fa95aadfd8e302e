"""Our check of what the kernel made: images that it filled, and such as it left in a crash."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.loop_worker import run_worker
from tests.interop.test_images_loop import JOURNALS, MATRIX, image_digest
from tests.unit.fsimage.ext4_images import make_image
from tests.unit.fsimage.test_ext4_check import counts, e2fsck_counts, report_of

pytestmark = pytest.mark.root


@pytest.mark.parametrize("name", MATRIX)
def test_what_the_kernel_made_is_clean(tmp_path: Path, name: str) -> None:
    image = make_image(tmp_path / "fs.img", "120M", "-N", "9000", *MATRIX[name])
    run_worker(image, "rw", "populate")
    report = report_of(image)
    assert report.findings == []
    assert counts(report) == e2fsck_counts(image)


@pytest.mark.parametrize("name", JOURNALS)
def test_what_a_crash_left_is_clean_once_replayed(tmp_path: Path, name: str) -> None:
    options, mount_options = JOURNALS[name]
    image = make_image(tmp_path / "fs.img", "64M", "-N", "4096", *options)
    crashed = tmp_path / "crashed.img"
    run_worker(image, mount_options, "crash", str(crashed))
    before = image_digest(crashed)
    report = report_of(crashed)
    assert report.findings == []
    assert any("replayed in memory" in note for note in report.notes)
    assert any("deleted or truncated" in note for note in report.notes)
    assert image_digest(crashed) == before
