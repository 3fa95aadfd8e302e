"""Who hears what becomes of an address that is tentative (RFC 4862 section 5.4, RFC 5227)."""

from __future__ import annotations

from typing import Protocol

from appliance.clock import Instant


class Claimant(Protocol):
    """Who has given us an address, and hears what becomes of it."""

    def address_is_ours(self, address: bytes, now: Instant) -> None:
        """Nobody else uses it; from now on, we do."""

    def address_is_taken(self, address: bytes, rival: str, now: Instant) -> None:
        """Another station has it: `rival` says at which MAC address. One that was lent has to be
        removed now, and its connections reset before (RFC 5227 section 2.4)."""
