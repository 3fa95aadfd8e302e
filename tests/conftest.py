"""What holds for every test: hypothesis profiles.

"ci" tries the same examples every time, so that a red run is red again on the next machine;
"nightly" tries new ones, and more of them: HYPOTHESIS_PROFILE=nightly.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, database=None)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
