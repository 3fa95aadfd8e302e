"""A TAP interface of Linux: Ethernet frames through a file descriptor.

Offload. With IFF_VNET_HDR each frame is preceded by a virtio-net header, and then TUNSETOFFLOAD
tells the kernel what it may leave to us: checksums, and cutting up. A read or a write moves up to
64 KiB then instead of one MTU, which is where the speed comes from. Where the kernel refuses, plain
frames serve.

Reading blocks, and nothing polls in front of it: that would cost 0.6 us a frame. So `close` has to
wake a thread that is inside `read`, which closing a descriptor does not do. It first puts /dev/null
in the descriptor's place (a later read returns at once, and the number cannot be reused under a
thread's feet), then lets the host send one broadcast datagram into the interface. A descriptor that
was handed to us may belong to an interface in another network namespace, where we can send
nothing; that one is polled together with an eventfd.

Trouble with the interface is not the end of the process: a frame that cannot be sent is lost, as on
any wire, and a read that fails is tried again after a while.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from struct import Struct
from threading import Event
from typing import Final
from weakref import finalize

import pytun

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import FRAME_BYTES_MAX, LINK_RETRY_AFTER, TAP_QUEUE_FRAMES
from appliance.netstack.wire import vnet
from appliance.trace import log

Buffer = bytes | bytearray | memoryview

_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_TAP: Final = 0x0002
_IFF_VNET_HDR: Final = 0x4000

_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_TUNSETVNETHDRSZ: Final = 0x400454D8
_SIOCGIFMTU: Final = 0x8921
_SIOCSIFTXQLEN: Final = 0x8943

_CSUM: Final = 0x01
_TSO4: Final = 0x02
_TSO6: Final = 0x04
_TSO_ECN: Final = 0x08
_USO4: Final = 0x20
_USO6: Final = 0x40
_OFFLOADS: Final = (
    _CSUM | _TSO4 | _TSO6 | _TSO_ECN | _USO4 | _USO6,
    _CSUM | _TSO4 | _TSO6 | _TSO_ECN,  # before Linux 6.2
    _CSUM | _TSO4,
    _CSUM,
)
"""From the most to the least that a kernel may take."""

_IFREQ: Final = Struct("16si20x")
_IFREQ_FLAGS: Final = Struct("16sH22x")
_INT: Final = Struct("i")
_IOV_MAX: Final = 1024
_DISCARD_PORT: Final = 9
_MTU_UNKNOWN: Final = 1500


class NotATap(OSError):
    """The descriptor is not one of a TAP that we can use."""


@dataclass(frozen=True, slots=True)
class HostSide:
    """What the host's side of a new TAP gets: an address and a netmask, as text."""

    address: str
    netmask: str


class TapLink:
    """One TAP. Made by `open_tap` or `adopt_tap`."""

    def __init__(self, fd: int, *, name: str, vnet_header: bool, mtu: int, polled: bool) -> None:
        self.name = name
        self.vnet = vnet_header
        self.mtu = mtu
        self._fd = fd
        self._closed = Event()
        self._in_trouble: int | None = None  # the errno that was told last
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        finalize(self, os.close, self._wake)
        self._polled = polled
        self._keep: object = None  # closes the descriptor when it is collected
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    # --- frames -----------------------------------------------------------------------

    def receive(self) -> bytes | None:
        """The next frame; None: closed (interface.py)."""
        while True:
            if self._polled:
                self._poll.poll()
            try:
                frame = os.read(self._fd, FRAME_BYTES_MAX)
            except OSError as error:
                self._trouble("receive", error)
                self._closed.wait(LINK_RETRY_AFTER / SECOND)
                frame = b""
            if self._closed.is_set():
                return None
            if frame:
                return frame

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Send one frame (interface.py)."""
        if len(buffers) > _IOV_MAX:
            buffers = (b"".join(buffers),)
        try:
            os.writev(self._fd, buffers)
        except OSError as error:
            self._trouble("send", error)
            return False
        return True

    def _trouble(self, doing: str, error: OSError) -> None:
        """Tell what is wrong, but not for each frame again."""
        if error.errno != self._in_trouble and not self._closed.is_set():
            self._in_trouble = error.errno
            log.warning("tap %s failed name=%s error=%s", doing, self.name, error.strerror)

    def wait(self, timeout_ns: int) -> bool:
        """Whether a frame comes within the timeout (interface.py)."""
        return bool(self._poll.poll(timeout_ns / MILLISECOND))

    # --- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """End it (interface.py). A TAP that was created here disappears with it."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self.vnet:
            # A persistent TAP is left as it was found: its next user may not know these.
            with suppress(OSError):
                fcntl.ioctl(self._fd, _TUNSETOFFLOAD, 0)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        os.dup2(null, self._fd, inheritable=False)
        os.close(null)
        os.eventfd_write(self._wake, 1)
        if not self._polled:
            self._knock()

    def _knock(self) -> None:
        """Let the host send a frame into the interface, so that a blocked read returns.

        Nothing happens where nobody reads (then the interface is gone already), or where it is
        down.
        """
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as knock:
            knock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.name.encode())
            knock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            knock.sendto(b"", ("255.255.255.255", _DISCARD_PORT))

    def keep(self, owner: object) -> None:
        """`owner` closes the descriptor when it is collected: not before this link is."""
        self._keep = owner


def open_tap(
    name: str, *, offload: bool = True, mtu: int | None = None, host: HostSide | None = None
) -> TapLink:
    """Create a TAP, with the host's side of it up; or attach to one that exists, and change
    nothing about it (`mtu` and `host` mean nothing then). OSError."""
    existed = name in (there for _, there in socket.if_nameindex())
    tun, vnet_header = _attach(name, offload)
    fd = tun.fileno()
    if vnet_header:
        _set_offload(fd, offload)
    if not existed:
        _set_up(tun, name, mtu, host)
    link = TapLink(fd, name=name, vnet_header=vnet_header, mtu=tun.mtu, polled=False)
    link.keep(tun)
    return link


def adopt_tap(fd: int, *, offload: bool = True) -> TapLink:
    """Use a TAP that somebody else has opened; the descriptor is ours from now on. NotATap."""
    try:
        raw = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
    except OSError as error:
        raise NotATap(errno.EINVAL, f"descriptor {fd} is not a TAP: {error.strerror}") from None
    name_bytes, flags = _IFREQ_FLAGS.unpack(raw)
    name = name_bytes.rstrip(b"\0").decode()
    if not flags & _IFF_TAP:
        raise NotATap(errno.EINVAL, f"{name} is a TUN interface, without Ethernet")
    if not flags & _IFF_NO_PI:
        raise NotATap(errno.EINVAL, f"{name} was opened without IFF_NO_PI")
    vnet_header = bool(flags & _IFF_VNET_HDR)
    if vnet_header:
        _set_offload(fd, offload)
    os.set_blocking(fd, True)
    link = TapLink(fd, name=name, vnet_header=vnet_header, mtu=_mtu_of(name), polled=True)
    finalize(link, os.close, fd)
    return link


def _attach(name: str, offload: bool) -> tuple[pytun.TunTapDevice, bool]:
    """Open it, as well as the kernel lets us; whether with a virtio-net header."""
    headers = (_IFF_VNET_HDR, 0) if offload else (0,)
    for header in headers:
        for queues in (0, _IFF_MULTI_QUEUE):  # a persistent TAP may have been made with many
            try:
                tun = pytun.TunTapDevice(name, _IFF_TAP | _IFF_NO_PI | header | queues)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return tun, header != 0
    raise OSError(errno.EINVAL, f"{name} is not a TAP")


def _set_offload(fd: int, offload: bool) -> None:
    """Ten bytes of header, and as much of the work with us as the kernel can leave to us."""
    fcntl.ioctl(fd, _TUNSETVNETHDRSZ, _INT.pack(vnet.HEADER_BYTES))
    for offloads in _OFFLOADS if offload else (0,):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return


def _set_up(tun: pytun.TunTapDevice, name: str, mtu: int | None, host: HostSide | None) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFTXQLEN, _IFREQ.pack(name.encode(), TAP_QUEUE_FRAMES))
    if mtu is not None:
        tun.mtu = mtu
    if host is not None:
        tun.addr = host.address
        tun.netmask = host.netmask
    tun.up()


def _mtu_of(name: str) -> int:
    """The MTU of an interface, as far as we can see it from this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, _SIOCGIFMTU, _IFREQ.pack(name.encode(), 0))
        except OSError:
            return _MTU_UNKNOWN
    mtu: int = _IFREQ.unpack(answer)[1]
    return mtu
