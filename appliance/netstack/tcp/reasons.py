"""Why a connection is over, or never began (RFC 9293 section 3.9.1: what the user is told).

The words are for people; a program that has to tell reasons apart compares with these. A reason
that stands in none of them comes from an ICMP error, and is in its words (ip/v4/icmp.py)."""

from __future__ import annotations

from typing import Final

REFUSED: Final = "connection refused"
"""The peer answered our SYN with a reset."""

RESET: Final = "reset by peer"

ANOTHER_SYN: Final = "the peer has begun another one"
"""Before this one was established; nobody had heard of it."""

NO_ANSWER: Final = "no answer to SYN"
TIMED_OUT: Final = "timed out"
USER_TIMEOUT: Final = "user timeout"
KEEPALIVE: Final = "keep-alive: no answer"
"""The peer has said nothing for too long."""

ABORTED: Final = "aborted"
CLOSED: Final = "closed"
"""The user has done it."""

NO_ROUTE: Final = "network unreachable"
HOST_UNREACHABLE: Final = "host unreachable"
"""No packet can be sent there: nothing leads to it, or nobody answers on the way."""

ADDRESS_GONE: Final = "the address has been removed"
"""Our own address, of which nothing can be sent or received any more."""

PORT_TAKEN: Final = "port is connected already"
NO_FREE_PORT: Final = "no free port"
NO_ROOM: Final = "too many connections"
"""Why an active OPEN is refused at once (section 3.10.1)."""


class CannotConnect(Exception):
    """An active OPEN that is refused at once. `reason` is one of the words above."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
