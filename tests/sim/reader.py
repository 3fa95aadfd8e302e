"""A user of a connection that keeps what arrives."""

from __future__ import annotations

from appliance.netstack.tcp.connection import Connection


class Reader:
    """What arrives on a connection."""

    def __init__(self) -> None:
        self.text = b""
        self.reasons: list[str | None] = []

    def readable(self, connection: Connection) -> None:
        self.text += b"".join(connection.receive())

    def room_again(self, connection: Connection) -> None:
        """Nothing waits."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        self.reasons.append(reason)
