"""What crash tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.kernel import Kernel


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    """Which mounts a sample of the states."""
    with Kernel() as running:
        yield running
