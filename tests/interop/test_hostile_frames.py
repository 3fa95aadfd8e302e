"""Bad frames on the wire, from a station next to the server that may send anything.

Without captures: an attack would fill them, and what the server sends to an attacker is not for
tshark to judge.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import hostile_fragments, hostile_headers, hostile_segments
from tests.interop.conftest import StartAppliance
from tests.interop.hostile import Attack, endure

pytestmark = pytest.mark.root

ATTACKS = [*hostile_headers.ATTACKS, *hostile_fragments.ATTACKS, *hostile_segments.ATTACKS]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_it_survives(attack: Attack, appliance: StartAppliance, tmp_path: Path) -> None:
    endure(attack, appliance("--memory", "64M", pcap=False), tmp_path)
