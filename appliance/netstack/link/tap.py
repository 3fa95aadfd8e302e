"""A TAP interface of Linux: Ethernet frames through a file descriptor.

Offload. With IFF_VNET_HDR each frame is preceded by a virtio-net header, and then TUNSETOFFLOAD
tells the kernel what it may leave to us: checksums, and cutting up. A read or a write moves up to
64 KiB then instead of one MTU, which is where the speed comes from. Where the kernel refuses, plain
frames serve.

Reading. A thread that was just given a frame will often be given the next one within microseconds,
and to sleep and be woken costs tens of them. So `receive` reads without waiting, some times in a
row, before it sleeps in poll(2), on the TAP and on the eventfd by which others wake it. Where
that has been in vain a few times (there is little to do, or the peer needs the processor that we
would keep busy) it reads once, and only now and then tries again whether it would pay. Under load
that is one system call a frame, and an idle link costs nothing.

Trouble with the interface is not the end of the process: a frame that cannot be sent is lost, as on
any wire, and a read that fails is tried again after a while. An interface that was deleted is
looked for at each try: when somebody has made it anew, under its name, we are on it again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from struct import Struct
from threading import Event, Lock
from typing import Final
from weakref import finalize

import pytun

from appliance.clock import MILLISECOND, SECOND
from appliance.limits import (
    FRAME_BYTES_MAX,
    LINK_RETRY_AFTER,
    LINK_SPIN_READS,
    LINK_SPIN_TRIED_EVERY,
    LINK_SPINS_IN_VAIN,
    TAP_QUEUE_FRAMES,
)
from appliance.netstack.link.interface import LinkError
from appliance.netstack.wire import vnet
from appliance.trace import log

Buffer = bytes | bytearray | memoryview
Interface = IPv4Interface | IPv6Interface

_IFF_MULTI_QUEUE: Final = 0x0100
_IFF_NO_PI: Final = 0x1000
_IFF_TAP: Final = 0x0002
_IFF_VNET_HDR: Final = 0x4000

_TUNSETOFFLOAD: Final = 0x400454D0
_TUNGETIFF: Final = 0x800454D2
_TUNSETVNETHDRSZ: Final = 0x400454D8
_SIOCSIFADDR: Final = 0x8916
_SIOCSIFNETMASK: Final = 0x891C
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
_IFREQ_ADDRESS: Final = Struct("16sHxx4s16x")
_IN6_IFREQ: Final = Struct("16sIi")
_IFREQ_FLAGS: Final = Struct("16sH22x")
_INT: Final = Struct("i")
_IOV_MAX: Final = 1024
_MTU_DEFAULT: Final = 1500


class TapLink:
    """One TAP. A link (interface.py)."""

    def __init__(
        self,
        name: str,
        *,
        fd: int | None = None,
        offload: bool = True,
        mtu: int = _MTU_DEFAULT,
        hosts: Sequence[Interface] = (),
        spin: int = LINK_SPIN_READS,
    ) -> None:
        """Create the TAP `name`, with the host's side of it up and at the addresses `hosts`; or
        attach to one that exists, and change nothing about it. With `fd`: use the TAP that somebody
        else has opened there; the descriptor is ours from now on. LinkError.
        """
        self._again: bool | None = None  # the offload to attach with, where we know how to
        if fd is None:
            self._open(name, offload, mtu, hosts)
            self._again = offload
        else:
            self._adopt(fd, offload, mtu)
        os.set_blocking(self._fd, False)
        self._reads = max(spin, 1)
        self._in_vain = 0  # so many times since reading again and again has paid
        self._closed = Event()
        self._ending = Lock()  # after the end, nothing is put under the descriptor any more
        self._in_trouble: int | None = None  # the errno that was told last
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        finalize(self, os.close, self._wake)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def _open(self, name: str, offload: bool, mtu: int, hosts: Sequence[Interface]) -> None:
        existed = name in (there for _, there in socket.if_nameindex())
        try:
            # The device object closes the descriptor when it is collected.
            self._device, self.vnet = attach(name, offload)
            self._fd: int = self._device.fileno()
            if self.vnet:
                set_offload(self._fd, offload)
            if not existed:
                set_up(self._device, name, mtu, hosts)
            self.mtu: int = self._device.mtu
        except OSError as error:
            raise cannot_open(name, error) from None
        self.name = name

    def _adopt(self, fd: int, offload: bool, mtu: int) -> None:
        try:
            raw = fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size))
        except OSError as error:
            raise LinkError(f"descriptor {fd} is not a TAP: {error.strerror}") from None
        name, flags = _IFREQ_FLAGS.unpack(raw)
        self.name = name.rstrip(b"\0").decode()
        if not flags & _IFF_TAP:
            raise LinkError(f"{self.name} is a TUN interface", "open it with IFF_TAP")
        if not flags & _IFF_NO_PI:
            raise LinkError(f"{self.name} puts a header before frames", "open it with IFF_NO_PI")
        self.vnet = bool(flags & _IFF_VNET_HDR)
        if self.vnet:
            set_offload(fd, offload)
        finalize(self, os.close, fd)
        self._fd = fd
        self.mtu = mtu_of(self.name) or mtu

    # --- frames -----------------------------------------------------------------------

    def receive(self) -> bytes | None:
        """The next frame; empty: woken; None: closed (interface.py)."""
        try:
            frame = os.read(self._fd, FRAME_BYTES_MAX)
        except OSError:
            frame = b""  # nothing there yet, or trouble, which will still be there
        return frame or self._receive_patiently()

    def _receive_patiently(self) -> bytes | None:
        """The same, where reading once has been in vain."""
        fd, first = self._fd, 1
        while not self._closed.is_set():
            in_vain = self._in_vain
            pays = in_vain < LINK_SPINS_IN_VAIN or not in_vain % LINK_SPIN_TRIED_EVERY
            for attempt in range(first, self._reads if pays else 1):
                try:
                    frame = os.read(fd, FRAME_BYTES_MAX)
                except BlockingIOError:
                    continue  # nothing there yet
                except OSError as error:
                    self._trouble("receive", error)
                    self._closed.wait(LINK_RETRY_AFTER / SECOND)
                    if error.errno == errno.EBADFD:
                        self._attach_again()
                    break
                if frame:
                    if attempt:
                        self._in_vain = 0
                    return frame
            else:
                self._in_vain += 1
                if self._called_away(self._poll.poll()):
                    return b""
            first = 0
        return None

    def _called_away(self, ready: list[tuple[int, int]]) -> bool:
        """Whether it was `wake` that ended the poll; once for any number of calls."""
        if self._closed.is_set() or all(fd != self._wake for fd, _ in ready):
            return False
        os.eventfd_read(self._wake)
        return True

    def receive_now(self) -> bytes | None:
        """The next frame, if one is there already (interface.py)."""
        try:
            return os.read(self._fd, FRAME_BYTES_MAX) or None
        except BlockingIOError:
            return None
        except OSError as error:
            self._trouble("receive", error)
            return None

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

    def _attach_again(self) -> None:
        """The interface was deleted. Use the one that has its name now, if there is one: under the
        same descriptor, which other threads may be about to use."""
        if self._again is None or self.name not in (name for _, name in socket.if_nameindex()):
            return
        try:
            device, vnet_header = attach(self.name, self._again)
            if vnet_header == self.vnet:  # what frames look like has been settled at the start
                if self.vnet:
                    set_offload(device.fileno(), self._again)
                os.set_blocking(device.fileno(), False)
                with self._ending:
                    if not self._closed.is_set():
                        os.dup2(device.fileno(), self._fd, inheritable=False)
                log.warning("tap attached again name=%s", self.name)
                self._in_trouble = None
            device.close()
        except OSError as error:
            self._trouble("attach", error)

    def wait(self, timeout_ns: int) -> bool:
        """Whether a frame comes within the timeout (interface.py)."""
        return bool(self._poll.poll(timeout_ns / MILLISECOND))

    def wake(self) -> None:
        """Let `receive` return (interface.py)."""
        os.eventfd_write(self._wake, 1)

    # --- the end ----------------------------------------------------------------------

    def close(self) -> None:
        """End it (interface.py). A TAP that was created here disappears with it.

        The descriptor's number stays taken, by /dev/null, so that a thread that is about to use it
        does no harm.
        """
        with self._ending:
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
        self.wake()


def attach(name: str, offload: bool) -> tuple[pytun.TunTapDevice, bool]:
    """Open it, as well as the kernel lets us; whether with a virtio-net header."""
    headers = (_IFF_VNET_HDR, 0) if offload else (0,)
    for header in headers:
        for queues in (0, _IFF_MULTI_QUEUE):  # a persistent TAP may have been made with many
            try:
                device = pytun.TunTapDevice(name, _IFF_TAP | _IFF_NO_PI | header | queues)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return device, header != 0
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def set_offload(fd: int, offload: bool) -> None:
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


def set_up(device: pytun.TunTapDevice, name: str, mtu: int, hosts: Sequence[Interface]) -> None:
    """The host's side of a TAP that we have made."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFTXQLEN, _IFREQ.pack(name.encode(), TAP_QUEUE_FRAMES))
    device.mtu = mtu
    device.up()
    for number, host in enumerate(hosts):
        if isinstance(host, IPv6Interface):
            add_ipv6_address(name, host)
        else:
            # Further IPv4 addresses of an interface have names of their own, in this interface of
            # the kernel's.
            add_ipv4_address(name if number == 0 else f"{name}:{number}", host)


def add_ipv4_address(name: str, host: IPv4Interface) -> None:
    """An address for the host's side."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, address in ((_SIOCSIFADDR, host.ip), (_SIOCSIFNETMASK, host.netmask)):
            fcntl.ioctl(control, request, _IFREQ_ADDRESS.pack(name.encode(), 2, address.packed))


def add_ipv6_address(name: str, host: IPv6Interface) -> None:
    """An address for the host's side. The kernel would not use it for a second or two, while it
    looks for others who have it; but on this link there is nobody else, and we look ourselves."""
    with suppress(OSError):  # /proc/sys is read-only in many containers: then it takes its time
        Path(f"/proc/sys/net/ipv6/conf/{name}/accept_dad").write_text("0")
    index = socket.if_nametoindex(name)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as control:
        request = _IN6_IFREQ.pack(host.ip.packed, host.network.prefixlen, index)
        fcntl.ioctl(control, _SIOCSIFADDR, request)


def mtu_of(name: str) -> int | None:
    """The MTU of an interface, where we can see it: it may be in another network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, _SIOCGIFMTU, _IFREQ.pack(name.encode(), 0))
        except OSError:
            return None
    mtu: int = _IFREQ.unpack(answer)[1]
    return mtu


def cannot_open(name: str, error: OSError) -> LinkError:
    """In words that help."""
    hints = {
        errno.EPERM: "run as root, or have root make a TAP for you: "
        f"ip tuntap add {name} mode tap user $USER",
        errno.EACCES: "/dev/net/tun must be readable and writable",
        errno.ENOENT: "is the tun module loaded? modprobe tun",
        errno.EBUSY: "another process uses it",
        errno.EINVAL: f"is {name} an interface of another kind?",
    }
    hint = hints.get(error.errno or 0, "")
    return LinkError(f"cannot open {name}: {error.strerror or error}", hint)
