"""What holds for every test: hypothesis profiles, and the options of the command line.

"ci" tries the same examples every time, so that a red run is red again on the next machine;
"nightly" tries new ones, and more of them: HYPOTHESIS_PROFILE=nightly.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Here, and not in tests/packetdrill, because pytest reads the command line first."""
    parser.addoption(
        "--against",
        choices=("ours", "linux", "both"),
        default="both",
        help="the host that scripts of packetdrill are played against: our stack, the kernel's",
    )
