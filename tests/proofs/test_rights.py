"""Who may do what: random histories of many users on an image, against the kernel. Every outcome is
the same, and so is the tree after every step; then e2fsck and our own check look at both images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.vfs import access
from tests.proofs import geometry, rights
from tests.proofs.conftest import NIGHTLY, Templates

pytestmark = pytest.mark.root

STEPS = 20_000 if NIGHTLY else 1000


@pytest.fixture
def image(tmp_path: Path, templates: Templates) -> Path:
    return geometry.copied(templates("ext4-1k"), tmp_path / "fs.img")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_kernel_and_we_permit_the_same(image: Path, seed: int) -> None:
    assert rights.first_difference(image, seed, STEPS) is None
    geometry.sound(image)
    geometry.sound(rights.of_the_kernel(image))


def test_where_nothing_may_be_changed(image: Path) -> None:
    assert rights.first_difference(image, 5, 300, read_only=True) is None


def a_sticky_directory_is_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "STICKY", 0)


def set_id_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "without_set_id", lambda mode, in_group: mode)


@pytest.mark.parametrize("bug", [a_sticky_directory_is_like_any_other, set_id_stays])
def test_a_bug_is_found(
    image: Path, bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    assert rights.first_difference(image, 1, 600) is not None
