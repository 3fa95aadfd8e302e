"""The calls of a script, made on the kernel's sockets (linux.py)."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from typing import Any

from tests.packetdrill.language import Value
from tests.packetdrill.packets import pattern
from tests.packetdrill.player import STATE_NAMES

FIRST_DESCRIPTOR = 3
TCP_INFO_BYTES = 104
SPARE_BYTES = 1 << 20


def constant(value: Value) -> int:
    """A number; names, joined by `|`, are those of the system's headers."""
    if isinstance(value, int):
        return value
    total = 0
    for name in str(value).split("|"):
        for module in (socket, select, os, fcntl):
            if hasattr(module, name):
                total |= int(getattr(module, name))
                break
        else:
            total |= EXTRA[name]
    return total


EXTRA = {"TCP_CORK": 3, "SHUT_RD": 0, "SHUT_WR": 1, "SHUT_RDWR": 2}


class KernelCalls:
    """The program's descriptors, which have the numbers that the script gives them."""

    def __init__(self, ours: str, peer: str, ports: tuple[int, int]) -> None:
        self.ours, self.peer = ours, peer
        self.family = socket.AF_INET6 if ":" in ours else socket.AF_INET
        self.our_port, self.peer_port = ports
        self.sockets: dict[int, socket.socket] = {}
        self.read_bytes: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.last: socket.socket | None = None

    def number(self, made: socket.socket) -> int:
        number = FIRST_DESCRIPTOR
        while number in self.sockets:
            number += 1
        self.sockets[number] = made
        self.read_bytes[number] = self.written[number] = 0
        return number

    def at(self, number: Value) -> socket.socket:
        found = self.sockets.get(number) if isinstance(number, int) else None
        if found is None:
            raise OSError(errno.EBADF, "bad file descriptor")
        return found

    def socket(self, family: Value, kind: Value, protocol: Value) -> int:
        made = socket.socket(self.family, constant(kind))
        if "SOCK_DGRAM" in str(kind):
            made.bind((self.ours, self.our_port))
        return self.number(made)

    def bind(self, number: Value, address: Value, size: Value) -> int:
        self.at(number).bind((self.ours, self.our_port))
        return 0

    def listen(self, number: Value, backlog: Value) -> int:
        self.at(number).listen(constant(backlog))
        return 0

    def accept(self, number: Value, address: Value, size: Value) -> int:
        listener = self.at(number)
        made, _ = listener.accept()
        made.setblocking(True)
        self.last = made
        return self.number(made)

    def connect(self, number: Value, address: Value, size: Value) -> int:
        made = self.at(number)
        if self.last is not made:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((self.ours, self.our_port))
            self.last = made
        made.connect((self.peer, self.peer_port))
        return 0

    def read(self, number: Value, buffer: Value, count: Value) -> int:
        assert isinstance(number, int)
        made = self.at(number)
        got = made.recv(constant(count))
        if made.type == socket.SOCK_DGRAM:
            assert got == pattern(0, len(got)), "not the bytes that were sent"
            return len(got)
        before = self.read_bytes[number]
        assert got == pattern(1 + before, len(got)), "not the bytes that were sent"
        self.read_bytes[number] += len(got)
        return len(got)

    def recv(self, number: Value, buffer: Value, count: Value, flags: Value) -> int:
        return self.read(number, buffer, count)

    def write(self, number: Value, buffer: Value, count: Value) -> int:
        return self.send(number, buffer, count, 0)

    def send(self, number: Value, buffer: Value, count: Value, flags: Value) -> int:
        assert isinstance(number, int)
        text = pattern(1 + self.written.get(number, 0), constant(count))
        sent = self.at(number).send(text, constant(flags) | socket.MSG_NOSIGNAL)
        self.written[number] += sent
        return sent

    def sendto(
        self, number: Value, buffer: Value, count: Value, flags: Value, to: Value, size: Value
    ) -> int:
        to_peer = self.peer, self.peer_port
        return self.at(number).sendto(pattern(0, constant(count)), to_peer)

    def shutdown(self, number: Value, how: Value) -> int:
        self.at(number).shutdown(constant(how))
        return 0

    def close(self, number: Value) -> int:
        closing = self.at(number)
        del self.sockets[number]  # type: ignore[arg-type]
        if closing is self.last:
            self.last = None
        closing.close()
        return 0

    def fcntl(self, number: Value, command: Value, value: Value = 0) -> int:
        made = self.at(number)
        if command == "F_SETFL":
            made.setblocking("O_NONBLOCK" not in str(value))
            return 0
        return int(fcntl.fcntl(made.fileno(), fcntl.F_GETFL))

    def setsockopt(
        self, number: Value, level: Value, name: Value, value: Value, size: Value
    ) -> int:
        made = self.at(number)
        where, what = constant(level), constant(name)
        if isinstance(value, dict):  # struct linger
            packed = struct.pack("ii", constant(value["l_onoff"]), constant(value["l_linger"]))
            made.setsockopt(where, what, packed)
        else:
            made.setsockopt(where, what, constant(value[0] if isinstance(value, list) else value))
        return 0

    def getsockopt(
        self, number: Value, level: Value, name: Value, value: Value, size: Value
    ) -> int:
        got = self.at(number).getsockopt(constant(level), constant(name))
        shown = errno.errorcode.get(got, 0)
        if value not in ([shown], [got]):
            raise AttributeError(f"the value is {shown}")
        return 0

    def poll(self, descriptors: Value, count: Value, timeout: Value) -> int:
        assert isinstance(descriptors, list)
        poller = select.poll()
        expected = {}
        for one in descriptors:
            assert isinstance(one, dict)
            made = self.at(one["fd"])
            poller.register(made.fileno(), constant(one["events"]))
            expected[made.fileno()] = constant(one.get("revents", 0))
        got = poller.poll(constant(timeout))
        if dict(got) != {number: events for number, events in expected.items() if events}:
            raise AttributeError(f"revents are {got}")
        return len(got)

    def names(self) -> dict[str, Any]:
        """Of struct tcp_info, by its own names."""
        names: dict[str, Any] = dict(STATE_NAMES)
        if self.last is not None:
            raw = self.last.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            names["tcpi_state"] = raw[0]
            names["tcpi_rto"], _ato, names["tcpi_snd_mss"] = struct.unpack_from("=3I", raw, 8)
            names["tcpi_rtt"], _var, _threshold, names["tcpi_snd_cwnd"] = struct.unpack_from(
                "=4I", raw, 68
            )
        return names
