"""--fault in words: what each key sets, and what is said about what cannot be."""

from __future__ import annotations

import pytest

from appliance.clock import MILLISECOND, SECOND
from appliance.netstack.link.conditions import Conditions
from appliance.netstack.link.fault_spec import FaultError, parse_fault


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("drop=1%", Conditions(loss=0.01)),
        ("drop=0.25", Conditions(loss=0.25)),
        ("drop", Conditions(loss=1.0)),
        ("duplicate=2%,corrupt=0.5%", Conditions(duplication=0.02, damage=0.005)),
        ("truncate=3%", Conditions(truncation=0.03)),
        ("reorder=5%", Conditions(reordering=0.05, reordering_delay=10 * MILLISECOND)),
        (
            "reorder=5%, hold=1.5ms",
            Conditions(reordering=0.05, reordering_delay=1_500_000),
        ),
        ("delay=20ms,jitter=200us", Conditions(delay=20 * MILLISECOND, jitter=200_000)),
        (
            "rate=10mbit,queue=64K,burst=16K",
            Conditions(bytes_per_second=1_250_000, queue_bytes=65536, burst_bytes=16384),
        ),
        ("mtu=1400", Conditions(mtu=1400)),
    ],
)
def test_a_key_sets_its_condition(text: str, conditions: Conditions) -> None:
    assert parse_fault(text).conditions == conditions


def test_the_other_keys_say_which_frames() -> None:
    rule = parse_fault("drop=50%,seed=7,nth=3-5,between=0.5-10,filter=tcp port 2049 and out")
    assert (rule.seed, rule.nth, rule.between) == (7, (3, 5), (SECOND // 2, 10 * SECOND))
    assert parse_fault("drop,nth=3").nth == (3, 3)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("dorp=1%", '"dorp" is no kind of fault', "did you mean drop?"),
        ("xyzzy", "is no kind of fault", "there are: drop, duplicate"),
        ("", "is no kind of fault", "there are:"),
        ("drop=101%", "is no probability", "drop=1%"),
        ("drop=-1", "is no probability", "drop=1%"),
        ("corrupt=lots", "is no probability", "corrupt=1%"),
        ("delay=20", "is no value for delay", "delay=20ms"),
        ("delay", "is no value for delay", "delay=20ms"),
        ("delay=20h", "is no value for delay", "delay=20ms"),
        ("delay=100000s", "too long", "at most 600s"),
        ("rate=10MB", "is no value for rate", "rate=10mbit"),
        ("rate=1bit", "nothing passes", "drop=100%"),
        ("rate=1mbit,queue=100", "holds no frame", "at least"),
        ("drop=1%,drop=2%", "drop is said twice", "--fault again"),
        ("seed=7", "does nothing", "drop=1%"),
        ("drop=1%,seed=x", "is no number for seed", "seed=7"),
        ("drop=1%,nth=0", "is no frame", "the first is nth=1"),
        ("drop=1%,nth=5-3", "is no frame", "nth=3-5"),
        ("drop=1%,between=5", "is no time", "between=5-10"),
        ("drop=1%,between=5s-7s", "is no time", "between=5-10"),
        ("drop=1%,between=7-5", "over before it begins", ""),
        ("drop=1%,filter=tcp prot 1", '"prot" is not known', "did you mean port?"),
        ("hold=5ms,delay=1ms", "hold needs reorder", "reorder=5%"),
        ("queue=64K,drop=1%", "queue needs rate", "rate=10mbit"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str, hint: str) -> None:
    with pytest.raises(FaultError) as caught:
        parse_fault(text)
    assert message in str(caught.value)
    assert hint in caught.value.hint
