"""Bad frames on the wire, from a station next to the server that may send anything.

Every attack is a function that sends its frames and returns which counters have to tell of them,
and how often. It is run once to warm up (limits fill, the allocator takes what it needs), and then
again under the eyes of `survives`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import hostile_fragments, hostile_headers, hostile_segments
from tests.interop.conftest import StartAppliance
from tests.interop.hostile import Attacker, put_file, survives
from tests.interop.hostile_headers import Attack
from tests.interop.lab import Appliance, Namespace

pytestmark = pytest.mark.root

ROUNDS = 2


@pytest.fixture
def server(appliance: StartAppliance, tmp_path: Path) -> Appliance:
    """Without a capture: an attack would fill it, and what the server sends to an attacker is not
    for tshark to judge."""
    started = appliance("--memory", "64M", pcap=False)
    put_file(started, tmp_path)
    return started


@pytest.fixture
def attacker(server: Appliance, netns: Namespace) -> Iterator[Attacker]:
    made = Attacker(netns)
    yield made
    made.close()


def named(attack: Attack) -> str:
    return attack.__name__


ATTACKS = [*hostile_headers.ATTACKS, *hostile_fragments.ATTACKS, *hostile_segments.ATTACKS]


@pytest.mark.parametrize("attack", ATTACKS, ids=named)
def test_it_survives(attack: Attack, server: Appliance, attacker: Attacker) -> None:
    attack(attacker)
    expected: Counter[str] = Counter()
    with survives(server, lambda: expected):
        for _ in range(ROUNDS):
            expected += attack(attacker)
