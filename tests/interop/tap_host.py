"""A program for test_tap.py: a stack on a TAP, with an echo service on UDP and TCP port 7.

The command line is the arguments of TapLink as JSON; with "hand_over" ("vnet" or "plain") it first
opens the TAP itself and hands over the descriptor; with "sabotage", writes and reads fail now and
then. It says when it is ready, and what it has got; at the end of its input it closes the link, and
says what it has counted.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import select
import sys
from collections.abc import Sequence
from ipaddress import ip_interface
from threading import Event, Lock, Thread
from typing import Any

import pytun

from appliance import trace
from appliance.clock import MILLISECOND, SECOND, SystemClock
from appliance.netstack.link.interface import LinkError
from appliance.netstack.link.tap import TapLink
from appliance.netstack.stack import HostConfig, Stack
from appliance.netstack.tcp.connection import Connection
from appliance.trace import Counters

Buffer = bytes | bytearray | memoryview

IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
PORT = 7
ADDRESS = bytes([10, 0, 0, 5])
MAC = bytes.fromhex("02000a000005")


class Echo:
    """A connection that gets back what it sends."""

    def readable(self, connection: Connection) -> None:
        connection.send(connection.receive())

    def room_again(self, connection: Connection) -> None:
        """Nothing waits."""

    def ended(self, connection: Connection, reason: str | None) -> None:
        connection.close()


class TapHost:
    """The stack, the thread that reads, and the loop that runs timers."""

    def __init__(self, link: TapLink) -> None:
        self.counters = Counters()
        self._link = link
        self._clock = SystemClock()
        self._lock = Lock()
        self._woken = Event()
        config = HostConfig.single(MAC, ADDRESS, 24)
        self._stack = Stack(link, config, random=random.Random(1), counters=self.counters)
        self._socket = self._stack.udp.bind(PORT, self._datagram)
        self._stack.tcp.listen(PORT, lambda _connection: Echo())
        self._stack.start(self._clock.now())
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _datagram(self, source: bytes, port: int, _destination: bytes, data: memoryview) -> None:
        self._socket.send_to(source, port, [data])

    def _read(self) -> None:
        while (frame := self._link.receive()) is not None:
            if not frame:
                self._woken.set()
                continue
            now = self._clock.now()
            with self._lock:
                self._stack.receive(frame, now)
                self._stack.flush(now)

    def run_until_end_of_input(self) -> None:
        """Timers meanwhile, to within some milliseconds."""
        while not select.select([sys.stdin], [], [], 5 * MILLISECOND / SECOND)[0]:
            now = self._clock.now()
            with self._lock:
                self._stack.expire(now)
                self._stack.flush(now)

    def wake(self) -> int:
        """How many of three calls the reader has heard, each on its own."""
        heard = 0
        for _ in range(3):
            self._woken.clear()
            self._link.wake()
            heard += self._woken.wait(0.2)
        return heard

    def close(self) -> bool:
        """True: the reader has ended, too."""
        self._link.close()
        self._reader.join(5)
        return not self._reader.is_alive()


SABOTAGE_EVERY = 40


def sabotage(counters: Counters) -> None:
    """From now on, one in so many calls fails, in all ways that a TAP is known for, and a write may
    take only a part of the frame."""
    ways = itertools.cycle((errno.EIO, errno.ENOBUFS, errno.EBADFD, errno.EINVAL, None))
    writes, reads = itertools.count(1), itertools.count(1)
    writev, read = os.writev, os.read

    def bad_writev(fd: int, buffers: Sequence[Buffer]) -> int:
        if next(writes) % SABOTAGE_EVERY:
            return writev(fd, buffers)
        way = next(ways)
        counters[f"sabotage.{way and errno.errorcode[way]}"] += 1
        if way is not None:
            raise OSError(way, os.strerror(way))
        whole = b"".join(buffers)
        return writev(fd, [whole[: len(whole) // 2]])

    def bad_read(fd: int, size: int) -> bytes:
        if next(reads) % (SABOTAGE_EVERY * 25) == 0:
            counters["sabotage.read"] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, size)

    vars(os).update(writev=bad_writev, read=bad_read)


def open_link(wanted: dict[str, Any]) -> TapLink:
    hand_over = wanted.pop("hand_over", None)
    wanted.pop("sabotage", None)
    if "host" in wanted:
        wanted["hosts"] = [ip_interface(wanted.pop("host"))]
    if hand_over is None:
        return TapLink(**wanted)
    flags = IFF_TAP | IFF_NO_PI | (IFF_VNET_HDR if hand_over == "vnet" else 0)
    device = pytun.TunTapDevice(wanted["name"], flags)
    device.up()
    return TapLink("unknown", fd=os.dup(device.fileno()))


def main() -> None:
    trace.start("warning")
    try:
        link = open_link(json.loads(sys.argv[1]))
    except LinkError as error:
        print(json.dumps({"error": str(error), "hint": error.hint}), flush=True)
        return
    host = TapHost(link)
    if json.loads(sys.argv[1]).get("sabotage"):
        sabotage(host.counters)
    got = {"name": link.name, "vnet": link.vnet, "mtu": link.mtu}
    print(json.dumps(got), flush=True)
    host.run_until_end_of_input()
    woken = host.wake()
    ended = host.close()
    said = {"woken": woken, "ended": ended, "counters": host.counters}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
