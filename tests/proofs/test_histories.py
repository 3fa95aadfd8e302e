"""Random histories on every kind of image, against memory; each example ends with e2fsck, our own
check and the kernel's view of the image. HYPOTHESIS_PROFILE=nightly: new ones, and many more."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.proofs.conftest import NIGHTLY, Templates
from tests.proofs.geometry import GEOMETRIES
from tests.proofs.history import History

pytestmark = pytest.mark.root

EFFORT = settings(
    max_examples=400 if NIGHTLY else 16,
    stateful_step_count=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_an_image_behaves_as_memory_does(name: str, templates: Templates) -> None:
    class OnThisImage(History):
        kind = name
        template = templates(name)

    run_state_machine_as_test(OnThisImage, settings=EFFORT)
