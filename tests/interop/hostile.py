"""What an attacker on the link needs, and what has to be true of the server afterwards.

    attacker = Attacker(netns)              # a station at 10.0.0.66, and sockets in the namespace
    attacker.send(frames)                   # any frames, all of them read by the server
    with survives(server, {...}): ...       # what happens is compared with these counters
    endure(attack, server, folder)          # all of it: the attack, after a round to warm up

`survives` is the judge of all tests of bad input: a normal client works, the threads are the same,
nothing was raised, the processor rests, and memory has not grown.

An attack is a function that does its worst, and returns how often which counter has to tell of it.
Where only a sum is known (a cut may be found by one header or by the next), the key is several
names with a "|".
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from tests.interop.lab import HOST, SERVER, Appliance, Namespace, wait_until

T = TypeVar("T")

EVIL: Final = "10.0.0.66"
EVIL_MAC: Final = "02:00:00:00:00:66"
EVERYBODY_MAC: Final = "ff:ff:ff:ff:ff:ff"

CONTENT: Final = "still here\n"

GROWS_MAX: Final = 4 << 20
"""Bytes. What the allocator may keep; a leak of a hundred bytes a frame would be more."""

_CLONE_NEWNET: Final = 0x40000000
_ETH_P_ALL: Final = 3
_OUTGOING: Final = 4  # linux/if_packet.h: what the bridge sends to the server
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_GSO: Final = struct.pack("=BBHHHH", 1, 1, 54, 1400, 34, 16)
"""The checksum of TCP is to be completed, the segment to be cut into pieces of 1400 bytes."""
_IN_ONE_GO: Final = 400  # frames; the queue of the TAP takes thousands


class Inside:
    """A thread in the namespace. The sockets that it makes stay there, whoever uses them."""

    def __init__(self, netns: Namespace) -> None:
        self._path = f"/run/netns/{netns.name}"
        self._thread = ThreadPoolExecutor(max_workers=1, initializer=self._enter)

    def _enter(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)

    def make(self, function: Callable[[], T]) -> T:
        return self._thread.submit(function).result(timeout=30)

    def close(self) -> None:
        self._thread.shutdown()


class Connection(Protocol):
    """A socket, or something of the attacker's own."""

    def close(self) -> None: ...


class Attacker:
    """A station between the bridge and the server, which may do anything on the wire."""

    def __init__(self, netns: Namespace, tap: str = "tap0") -> None:
        self.netns = netns
        self.inside = Inside(netns)
        self.sniffer = self.inside.make(lambda: _packet_socket(tap))
        self._socket = self.inside.make(lambda: _packet_socket(tap))
        self.host_mac = _mac_of_host(netns)
        self.server_mac = EVERYBODY_MAC
        self._settled = 0
        self.held: list[Connection] = []  # connections that stay open when an attack is over
        self.server_mac = self._ask_for_server()

    def close(self) -> None:
        self.let_go()
        self.sniffer.close()
        self._socket.close()
        self.inside.close()

    def let_go(self) -> None:
        """Close the connections that were held."""
        while self.held:
            self.held.pop().close()

    # --- frames -----------------------------------------------------------------------

    def ether(self, **fields: Any) -> Ether:
        return Ether(**{"src": EVIL_MAC, "dst": self.server_mac, **fields})

    def ip(self, **fields: Any) -> Packet:
        """Ethernet and IP, from this station to the server unless said otherwise."""
        return self.ether() / IP(**{"src": EVIL, "dst": SERVER, **fields})

    def send(self, frames: Iterable[Packet | bytes]) -> int:
        """Send them, and wait until the server has read them; how many there were."""
        count = 0
        for frame in frames:
            self._socket.send(bytes(frame))
            count += 1
            if count % _IN_ONE_GO == 0:
                self.settle()
        self.settle()
        return count

    def settle(self) -> None:
        """Until the server has taken everything: frames are served in order, so that the answer to
        a ping tells it."""
        self._settled += 1
        probe = self.ip(id=0) / ICMP(id=0xE11, seq=self._settled & 0xFFFF)
        wanted = bytes(probe[ICMP])[4:8]
        for _ in range(20):
            self.introduce(EVIL, EVIL_MAC)
            self._socket.send(bytes(probe))
            if any(is_echo_reply(frame, wanted) for frame in received(self._socket, 0.5)):
                return
        raise AssertionError("the server does not answer to a ping")

    def introduce(self, address: str, mac: str) -> None:
        """Let the server know this neighbour, so that it sends to it at once."""
        asks = ARP(op=1, hwsrc=mac, psrc=address, pdst=SERVER)
        self._socket.send(bytes(self.ether(src=mac) / asks))

    def answers(self, frames: Iterable[Packet | bytes]) -> list[Packet]:
        """Send them; what the server sends meanwhile, without ARP and the pings of `settle`."""
        drain(self.sniffer)
        self.send(frames)
        return [
            Ether(frame)
            for frame in received(self.sniffer, 0)
            if frame[12:14] != b"\x08\x06" and frame[38:40] != b"\x0e\x11"
        ]

    def _ask_for_server(self) -> str:
        self.introduce(EVIL, EVIL_MAC)
        for frame in received(self._socket, 5):
            packet = Ether(frame)
            if ARP in packet and packet[ARP].op == 2 and packet[ARP].psrc == SERVER:
                return str(packet[ARP].hwsrc)
        raise AssertionError("the server does not answer to ARP")

    def send_super(self, segments: Iterable[bytes]) -> int:
        """Frames of up to 64 KiB with one TCP segment, as only a neighbour with offload can send
        them: through a guest's virtio-net, say. How many there were."""
        count = 0
        with self.inside.make(lambda: _packet_socket("tap0")) as wire:
            wire.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
            for segment in segments:
                wire.send(_GSO + segment)
                count += 1
                if count % 20 == 0:
                    self.settle()
        self.settle()
        return count

    # --- sockets of the host ------------------------------------------------------------

    def tcp(self, port: int = 2049, source: int = 0, timeout: float = 10) -> socket.socket:
        """A connection of the host's own TCP."""
        made = self.inside.make(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        made.settimeout(timeout)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            made.bind((HOST, source))
            made.connect((SERVER, port))
        except OSError:
            made.close()
            raise
        return made

    def udp(self, port: int) -> socket.socket:
        """A socket that is connected to a port of the server."""
        made = self.inside.make(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.settimeout(5)
        made.connect((SERVER, port))
        return made


def _packet_socket(interface: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 20)
    made.bind((interface, 0))
    return made


def _mac_of_host(netns: Namespace) -> str:
    return netns.run("cat", "/sys/class/net/br0/address").strip()


def received(wire: socket.socket, seconds: float) -> Iterator[bytes]:
    """Frames from the server, until none has come for so long."""
    while select.select([wire], [], [], seconds)[0]:
        frame, where = wire.recvfrom(1 << 17)
        if where[2] != _OUTGOING:
            yield frame


def drain(wire: socket.socket) -> None:
    for _ in received(wire, 0):
        pass


def is_echo_reply(frame: bytes, wanted: bytes) -> bool:
    """An answer to the echo request with this identifier and sequence number."""
    return frame[23] == 1 and frame[34] == 0 and frame[38:42] == wanted


# --- the judge --------------------------------------------------------------------------


def put_file(server: Appliance, folder: Path) -> None:
    """The file that normal clients read."""
    (folder / "content").write_text(CONTENT)
    server.netns.run("nfs-cp", str(folder / "content"), f"nfs://{SERVER}//file")


def assert_normal_clients_work(netns: Namespace) -> None:
    """rpcbind, mountd and nfsd serve them; ICMP and ARP, too."""
    assert "1 received" in netns.run("ping", "-c", "1", "-W", "2", SERVER)
    assert netns.run("nfs-cat", f"nfs://{SERVER}//file", timeout=20) == CONTENT
    listed = netns.run("nfs-ls", f"nfs://{SERVER}/", timeout=20)
    assert "file" in {line.split()[-1] for line in listed.splitlines()}


def threads(server: Appliance) -> list[str]:
    """The names that `ps -T` shows."""
    tasks = Path(f"/proc/{server.pid}/task").iterdir()
    return sorted((task / "comm").read_text().strip() for task in tasks)


def resident_bytes(server: Appliance) -> int:
    pages = Path(f"/proc/{server.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def processor_seconds(server: Appliance) -> float:
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rests(server: Appliance) -> bool:
    """It does not spin: timers and retransmissions are all that is left to do."""
    before = processor_seconds(server)
    time.sleep(0.15)
    return processor_seconds(server) - before < 0.05


@contextmanager
def survives(
    server: Appliance,
    expected: Mapping[str, int] | Callable[[], Mapping[str, int]],
    grows: int = GROWS_MAX,
) -> Iterator[None]:
    """What happens inside leaves no trace but counters: those of `expected` rise by as much at
    least (names joined by "|": together). Memory may grow by `grows` bytes; so warm up before."""
    names, memory, counters = threads(server), resident_bytes(server), server.counters()
    yield
    wait_until(lambda: _rests(server))
    assert_normal_clients_work(server.netns)
    after = server.counters()
    risen = {name: count - counters.get(name, 0) for name, count in after.items()}
    for name, count in (expected() if callable(expected) else expected).items():
        told = sum(risen.get(one, 0) for one in name.split("|"))
        assert told >= count, f"{name}: {told} of {count}; {risen}"
    assert threads(server) == names
    assert "machine.exception" not in after and "rpc.system_err" not in after, server.said()
    assert "Traceback" not in server.said(), server.said()
    grown = resident_bytes(server) - memory
    assert grown < grows, f"{grown / 2**20:.1f} MiB more"


Expected = Counter[str]
Attack = Callable[[Attacker], Expected]

ROUNDS: Final = 2


def endure(attack: Attack, server: Appliance, folder: Path, grows: int = GROWS_MAX) -> None:
    """The attack, once to warm up (limits fill, the allocator takes what it needs), and then again
    under the eyes of `survives`."""
    put_file(server, folder)
    attacker = Attacker(server.netns)
    try:
        attack(attacker)
        expected = Expected()
        with survives(server, lambda: expected, grows):
            for _ in range(ROUNDS):
                expected += attack(attacker)
    finally:
        attacker.close()
