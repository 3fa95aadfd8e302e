"""Bad calls: what a client of no good will, or of no good programmer, sends to the services."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import hostile_records
from tests.interop.conftest import StartAppliance
from tests.interop.hostile import Attack, endure

pytestmark = pytest.mark.root

ATTACKS = [*hostile_records.ATTACKS]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_bad_calls_do_no_harm(attack: Attack, appliance: StartAppliance, tmp_path: Path) -> None:
    endure(attack, appliance("--memory", "64M", pcap=False), tmp_path)
