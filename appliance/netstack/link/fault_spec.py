"""Faults in words: `drop=1%,delay=20ms,seed=7,filter=tcp port 2049 and out`.

A rule is what happens (Conditions), to which frames, and the seed that everything comes from. The
same seed and the same frames give the same faults.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from appliance.clock import MICROSECOND, MILLISECOND, SECOND, Instant
from appliance.limits import FAULT_DELAY_MAX
from appliance.netstack.link.conditions import PERFECT, Conditions
from appliance.netstack.link.frame_filter import Filter, FilterError, everything, parse_filter

REORDERING_DELAY_DEFAULT: Final = 10 * MILLISECOND
QUEUE_MIN: Final = 1 << 11
"""A queue that takes no whole frame passes nothing."""


class FaultError(ValueError):
    """A fault cannot be; `hint` says what can."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class FaultRule:
    """One --fault."""

    conditions: Conditions = PERFECT
    seed: int = 0
    filter: Filter = everything
    nth: tuple[int, int] | None = None
    """Only these of the frames that the filter takes, counted from 1: the first and the last."""
    between: tuple[Instant, Instant] | None = None
    """Only in this time, in nanoseconds from the start of the link."""
    text: str = ""
    """The words that it was made of."""


def parse_fault(text: str) -> FaultRule:
    """KEY[=VALUE][,KEY=VALUE...]. FaultError."""
    conditions: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for word in text.split(","):
        key, equals, value = (part.strip() for part in word.partition("="))
        if key not in _KEYS:
            raise FaultError(f'"{key}" is no kind of fault', _hint(key))
        if not equals and key in _CHANCES:
            value = "100%"
        name, parse = _KEYS[key]
        kept = others if key in _OTHERS else conditions
        if name in kept:
            raise FaultError(f"{key} is said twice", "give --fault again for another rule")
        kept[name] = parse(key, value)
    if not conditions:
        raise FaultError(f'"{text}" does nothing', "for example drop=1%")
    if "reordering" in conditions:
        conditions.setdefault("reordering_delay", REORDERING_DELAY_DEFAULT)
    _refuse_idle(conditions)
    return FaultRule(Conditions(**conditions), **others, text=text)


def _refuse_idle(conditions: dict[str, Any]) -> None:
    """What needs another key to mean anything."""
    for name, needs, word in (
        ("reordering_delay", "reordering", "hold needs reorder"),
        ("burst_bytes", "bytes_per_second", "burst needs rate"),
        ("queue_bytes", "bytes_per_second", "queue needs rate"),
    ):
        if name in conditions and needs not in conditions:
            raise FaultError(word, f"for example {_EXAMPLES[needs]}")


def _hint(key: str) -> str:
    near = get_close_matches(key, _KEYS, 1)
    return f"did you mean {near[0]}?" if near else f"there are: {', '.join(_KEYS)}"


# --- values -----------------------------------------------------------------------------

_NUMBER: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zA-Z%]*)", re.ASCII)
_TIMES: Final = {"us": MICROSECOND, "ms": MILLISECOND, "s": SECOND}
_RATES: Final = {"bit": 1, "kbit": 1_000, "mbit": 1_000_000, "gbit": 1_000_000_000}
_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20}


def _measured(key: str, value: str, units: dict[str, int], example: str) -> int:
    """A number with one of the units, rounded down to whole ones of the smallest."""
    found = _NUMBER.fullmatch(value)
    if found is None or found[2] not in units:
        raise FaultError(f'"{value}" is no value for {key}', f"for example {example}")
    return int(float(found[1]) * units[found[2]])


def _chance(key: str, value: str) -> float:
    """1% or 0.01."""
    found = _NUMBER.fullmatch(value)
    chance = float(found[1]) / (100 if found[2] else 1) if found else -1
    if found is None or found[2] not in ("", "%") or not 0 <= chance <= 1:
        raise FaultError(f'"{value}" is no probability', f"for example {key}=1% or {key}=0.01")
    return chance


def _time(key: str, value: str) -> int:
    time = _measured(key, value, _TIMES, f"{key}=20ms")
    if time > FAULT_DELAY_MAX:
        raise FaultError(f"{key}={value} is too long", f"at most {FAULT_DELAY_MAX // SECOND}s")
    return time


def _rate(key: str, value: str) -> int:
    rate = _measured(key, value.lower(), _RATES, _EXAMPLES["bytes_per_second"]) // 8
    if not rate:
        raise FaultError(f"nothing passes at {key}={value}", "drop=100% says it more clearly")
    return rate


def _size(key: str, value: str) -> int:
    return _measured(key, value, _SIZES, f"{key}=64K")


def _queue(key: str, value: str) -> int:
    size = _size(key, value)
    if size < QUEUE_MIN:
        raise FaultError(f"{key}={value} holds no frame", f"at least {QUEUE_MIN} bytes")
    return size


def _whole(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 19):
        raise FaultError(f'"{value}" is no number for {key}', f"for example {key}=7")
    return int(value)


def _nth(key: str, value: str) -> tuple[int, int]:
    """3, or 3-5."""
    first, dash, last = value.partition("-")
    bounds = _whole(key, first), _whole(key, last if dash else first)
    if not 1 <= bounds[0] <= bounds[1]:
        raise FaultError(f"{key}={value} is no frame", "the first is nth=1; nth=3-5 are three")
    return bounds


def _between(key: str, value: str) -> tuple[Instant, Instant]:
    """5-10: seconds since the start."""
    first, dash, last = value.partition("-")
    bounds = [_NUMBER.fullmatch(second) for second in (first, last)]
    if not dash or any(found is None or found[2] for found in bounds):
        raise FaultError(f'"{value}" is no time', "seconds since the start, as in between=5-10")
    start, end = (int(float(second) * SECOND) for second in (first, last))
    if start >= end:
        raise FaultError(f"{key}={value} is over before it begins")
    return start, end


def _filter(_key: str, value: str) -> Filter:
    try:
        return parse_filter(value)
    except FilterError as error:
        raise FaultError(str(error), error.hint) from None


_EXAMPLES: Final = {"reordering": "reorder=5%", "bytes_per_second": "rate=10mbit"}
_CHANCES: Final = ("drop", "duplicate", "reorder", "corrupt", "truncate")
_OTHERS: Final = ("seed", "filter", "nth", "between")
_KEYS: Final[dict[str, tuple[str, Callable[[str, str], Any]]]] = {
    "drop": ("loss", _chance),
    "duplicate": ("duplication", _chance),
    "reorder": ("reordering", _chance),
    "hold": ("reordering_delay", _time),
    "corrupt": ("damage", _chance),
    "truncate": ("truncation", _chance),
    "delay": ("delay", _time),
    "jitter": ("jitter", _time),
    "rate": ("bytes_per_second", _rate),
    "burst": ("burst_bytes", _size),
    "queue": ("queue_bytes", _queue),
    "mtu": ("mtu", _whole),
    "seed": ("seed", _whole),
    "filter": ("filter", _filter),
    "nth": ("nth", _nth),
    "between": ("between", _between),
}
"""The words, and what they set."""
