"""The duplicate request cache (RFC 1813 section 4.5): a call that came twice is done once.

A client that hears nothing sends its call again. To remove a file twice is not the same as to
remove it once: the second reply would be NOENT, although all went well. So the replies of
procedures that are declared `cached` are kept, and sent again.

What is the same call? Same client address, kind of transport, xid, program, version and procedure,
and the same arguments by length and checksum: clients do reuse xids, those that were started anew
above all. The port is not part of the key, because a client that reconnects may come from another
one. But two programs on one host may use the same xids too, and ask for the same thing one after
the other (a script run twice). So from another port a call is the same only if the first reply
has been lost, as far as we can tell: `Caller.reply_lost`.

What happens to a duplicate:

- of a call that was answered: it gets the same reply, byte for byte;
- of a call in progress, over the same connection: dropped, the reply is coming;
- of a call in progress, over another connection (every datagram is one): the reply is sent to both,
  for the first connection may be dead, and TCP clients ask again only after a minute.

Bounded in entries and bytes; the oldest go first. One client cannot push out the others: it has
a bound of its own, and its own oldest go first. Calls come from several threads: one lock.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock
from typing import Any, Protocol
from zlib import crc32

from appliance import limits
from appliance.clock import Clock, Instant

Buffer = bytes | bytearray | memoryview


class Caller(Protocol):
    """The connection or the datagram that a call came over, and where its reply goes."""

    @property
    def port(self) -> int:
        """The peer's."""

    def reply_lost(self) -> bool:
        """Whether a reply that was sent there may not have arrived."""

    def send(self, reply: Sequence[Buffer]) -> None:
        """Send a reply. The lock of the leader is held."""


class Entry:
    """One call, in progress or answered."""

    __slots__ = ("also", "born", "caller", "checksum", "client", "key", "reply")

    def __init__(
        self, client: str, key: Hashable, checksum: int, caller: Caller, born: Instant
    ) -> None:
        self.client = client
        self.key = key
        self.checksum = checksum
        self.caller = caller
        self.born = born
        self.reply: Sequence[Buffer] | None = None  # None: in progress
        self.also: Caller | None = None  # who asked for the same over another connection

    @property
    def size(self) -> int:
        """The bytes of the reply."""
        return sum(map(len, self.reply or ()))

    def is_repeated_by(self, caller: Caller, checksum: int) -> bool:
        return checksum == self.checksum and (
            caller.port == self.caller.port or self.reply is None or self.caller.reply_lost()
        )


class ReplyCache:
    """Of one server, for all of its clients."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = Lock()
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()  # the oldest first
        self._of_client: dict[str, OrderedDict[Hashable, None]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def begin(
        self, client: str, call: Hashable, caller: Caller, arguments: bytes
    ) -> Entry | Sequence[Buffer] | None:
        """A call is about to be run: its new entry, if it is the first of its kind.

        Otherwise it is not to be run, but answered with the reply that is returned, or, where
        that is None, by nobody.
        """
        key = (client, call)
        checksum = crc32(arguments) ^ len(arguments) << 32
        now = self._clock.now()
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.is_repeated_by(caller, checksum):
                if entry.reply is None:
                    if caller is not entry.caller:
                        entry.also = caller
                    return None
                if now - entry.born < limits.REPLY_KEPT_FOR:
                    return entry.reply
            if entry is not None:
                self._forget(entry)
            entry = Entry(client, key, checksum, caller, now)
            self._keep(entry)
            return entry

    def done(self, entry: Entry, reply: Sequence[Buffer]) -> Caller | None:
        """The call was run. Who else is to get the reply?"""
        with self._lock:
            entry.reply = reply
            if self._entries.get(entry.key) is entry:
                if entry.size > limits.REPLY_KEPT_BYTES_MAX:
                    entry.reply = None
                    self._forget(entry)
                else:
                    self._bytes += entry.size
                    self._shrink(entry.client)
            return entry.also

    def failed(self, entry: Entry) -> Caller | None:
        """Nothing is known of what the call has done: when it comes again, it is run again.
        Who else is to get the bad news?"""
        with self._lock:
            if self._entries.get(entry.key) is entry:
                self._forget(entry)
            return entry.also

    def _keep(self, entry: Entry) -> None:
        self._entries[entry.key] = entry
        self._of_client.setdefault(entry.client, OrderedDict())[entry.key] = None
        self._shrink(entry.client)

    def _shrink(self, client: str) -> None:
        own = self._of_client[client]
        while len(own) > limits.REPLIES_KEPT_OF_CLIENT_MAX and self._forget_oldest(own):
            pass
        while (
            len(self._entries) > limits.REPLIES_KEPT_MAX
            or self._bytes > limits.REPLIES_KEPT_BYTES_MAX
        ) and self._forget_oldest(self._entries):
            pass

    def _forget_oldest(self, keys: OrderedDict[Hashable, Any]) -> bool:
        """Of these; calls in progress stay, their number is bounded elsewhere (server.py)."""
        for key in keys:
            entry = self._entries[key]
            if entry.reply is not None:
                self._forget(entry)
                return True
        return False

    def _forget(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._bytes -= entry.size
        own = self._of_client[entry.client]
        del own[entry.key]
        if not own:
            del self._of_client[entry.client]
