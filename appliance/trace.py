"""What happened: counters by reason, and one log line per event worth telling.

A counter is named after what happened ("ip.bad_checksum", "rpc.prog_unavail"): a test asserts on
it, and a user finds with it why nothing is answered. Log lines read `what key=value ...`.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import defaultdict

log = logging.getLogger("rumpnfsd")


class Counters(defaultdict[str, int]):
    """How often each thing happened, by name. `counters["arp.conflict"] += 1` is how one counts."""

    def __init__(self) -> None:
        super().__init__(int)

    def __str__(self) -> str:
        return " ".join(f"{name}={count}" for name, count in sorted(self.items()))


class _Line(logging.Formatter):
    """The thread that says it, or what kind of thing it is: at the start and at the end there is
    only one, and users read it."""

    def format(self, record: logging.LogRecord) -> str:
        main = record.threadName == threading.main_thread().name
        who = record.levelname.lower() if main else record.threadName
        return f"{who}: {super().format(record)}"


def start(level: str = "warning") -> None:
    """Send log lines of `level` and above to stderr (debug, info, warning, error)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(level.upper())
    log.propagate = False
