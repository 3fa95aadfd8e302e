"""What is wrong with something that a peer sent."""

from __future__ import annotations


class BadPacket(Exception):
    """Drop it, and count it under `reason` ("ip.bad_checksum").

    Parsers raise it, and whatever decides that a packet is not to be believed; the stack counts it
    in one place and goes on. It never reaches anything above the stack.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
