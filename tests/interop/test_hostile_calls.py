"""Bad calls: what a client of no good will, or of no good programmer, sends to the services."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import hostile_arguments, hostile_records
from tests.interop.conftest import StartAppliance
from tests.interop.hostile import GROWS_MAX, Attack, endure

pytestmark = pytest.mark.root

ATTACKS = [*hostile_records.ATTACKS, *hostile_arguments.ATTACKS]

GROWS: dict[Attack, int] = {hostile_records.never_read: 40 << 20}
"""Where connections stay open: what the limits give to them, which is not always used up in the
round that warms up."""


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_bad_calls_do_no_harm(attack: Attack, appliance: StartAppliance, tmp_path: Path) -> None:
    server = appliance("--memory", "64M", pcap=False)
    endure(attack, server, tmp_path, GROWS.get(attack, GROWS_MAX))


@pytest.mark.parametrize(
    "attack",
    [hostile_arguments.names, hostile_arguments.mount_paths, hostile_arguments.forged_handles],
    ids=lambda attack: attack.__name__,
)
def test_nothing_leads_out_of_a_directory(
    attack: Attack, appliance: StartAppliance, tmp_path: Path
) -> None:
    top = tmp_path / "around"
    (top / "served").mkdir(parents=True)
    (top / "secret").write_text("secret")
    endure(attack, appliance("--directory", top / "served", pcap=False), tmp_path)
    assert sorted(path.name for path in top.iterdir()) == ["secret", "served"]
    assert (top / "secret").read_text() == "secret"
