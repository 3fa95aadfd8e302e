"""What is possible at all: a bare TAP, and the kernel's TCP, each driven by the least Python.

    python limits_server.py tap NAME ADDRESS      raw frames on a TAP with virtio-net headers
    python limits_server.py tcp ADDRESS           the kernel's TCP

`tap` answers ARP, echoes UDP on port 9000 by swapping addresses in place, counts UDP on port 9001,
and on a datagram to port 9002 writes frames of 64 KiB for two seconds, printing how many bytes a
second the kernel took; on one to port 9003 it prints how many bytes came to 9001. `tcp` serves
9000 (echo), 9001 (sink), 9002 (source) and 9003 (closes at once), each connection in a thread.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

import pytun

IFF_VNET_HDR = 0x4000
TUNSETVNETHDRSZ = 0x400454D8
TUNSETOFFLOAD = 0x400454D0
OFFLOADS = 0x7F  # checksum, TSO4, TSO6, ECN, UFO, USO4, USO6
VNET, ETHERNET, IPV4 = 10, 14, 20
MAC = b"\x02\x4e\x00\x00\x00\x09"
ECHO, SINK, SOURCE, REPORT = 9000, 9001, 9002, 9003
CLOSE = 9003  # of TCP
BULK = 1 << 20
SOURCE_SECONDS = 2.0


def open_tap(name: str) -> int:
    """A TAP with offloads; the descriptor is never closed."""
    device = pytun.TunTapDevice(name, flags=pytun.IFF_TAP | pytun.IFF_NO_PI | IFF_VNET_HDR)
    fd = os.dup(device.fileno())
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET))
    fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    return fd


def serve_tap(name: str, address: bytes) -> None:
    fd = open_tap(name)
    print("ready", flush=True)
    received = 0
    while True:
        frame = os.read(fd, 65560)
        kind = frame[VNET + 12 : VNET + 14]
        packet = VNET + ETHERNET
        if kind == b"\x08\x06" and frame[packet + 24 : packet + 28] == address:
            os.write(fd, arp_reply(frame, address))
        elif kind == b"\x08\x00" and frame[packet + 9] == socket.IPPROTO_UDP:
            port = int.from_bytes(frame[packet + IPV4 + 2 : packet + IPV4 + 4], "big")
            if port == ECHO:
                os.write(fd, echo(frame))
            elif port == SINK:
                received += len(frame)
            elif port == SOURCE:
                flood(fd)
            elif port == REPORT:
                print(received, flush=True)


def arp_reply(frame: bytes, address: bytes) -> bytes:
    packet = VNET + ETHERNET
    asker = frame[packet + 8 : packet + 18]
    head = bytes(VNET) + frame[VNET + 6 : VNET + 12] + MAC + b"\x08\x06"
    return head + frame[packet : packet + 6] + b"\0\2" + MAC + address + asker


def echo(frame: bytes) -> bytearray:
    """The frame with source and destination exchanged (the checksums stay right)."""
    reply = bytearray(frame)
    reply[0:VNET] = bytes(VNET)
    reply[VNET : VNET + 12] = frame[VNET + 6 : VNET + 12] + frame[VNET : VNET + 6]
    at = VNET + ETHERNET + 12
    reply[at : at + 8] = frame[at + 4 : at + 8] + frame[at : at + 4]
    at += 8
    reply[at : at + 4] = frame[at + 2 : at + 4] + frame[at : at + 2]
    reply[at + 6 : at + 8] = b"\0\0"  # UDP without a checksum: ours was only half of one
    return reply


def flood(fd: int) -> None:
    """Frames that the kernel takes in and drops: the cost of the TAP alone."""
    head = bytes(VNET) + b"\xff" * 6 + MAC + b"\x88\xb5"
    text = bytes(65_000)
    count, start = 0, time.monotonic()
    while time.monotonic() - start < SOURCE_SECONDS:
        for _ in range(100):
            os.writev(fd, [head, text])
        count += 100
    print(count * len(text) / (time.monotonic() - start), flush=True)


def serve_tcp(address: str) -> None:
    listeners = {
        socket.create_server((address, port), backlog=1024): serve
        for port, serve in {
            ECHO: tcp_echo,
            SINK: tcp_sink,
            SOURCE: tcp_source,
            CLOSE: tcp_close,
        }.items()
    }
    print("ready", flush=True)
    while True:
        for listener in select.select(list(listeners), [], [])[0]:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve = listeners[listener]
            if serve is tcp_close:
                connection.close()
            else:
                Thread(target=tcp_serve, args=(serve, connection), daemon=True).start()


def tcp_serve(serve: Callable[[socket.socket], None], connection: socket.socket) -> None:
    with connection, suppress(OSError):  # the client has measured enough
        serve(connection)


def tcp_echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def tcp_close(connection: socket.socket) -> None:
    connection.close()


def tcp_sink(connection: socket.socket) -> None:
    buffer = bytearray(BULK)
    while connection.recv_into(buffer):
        pass


def tcp_source(connection: socket.socket) -> None:
    data = bytes(BULK)
    while True:
        connection.sendall(data)


if __name__ == "__main__":
    if sys.argv[1] == "tap":
        serve_tap(sys.argv[2], socket.inet_aton(sys.argv[3]))
    else:
        serve_tcp(sys.argv[2])
