"""The machine: builds the parts, joins packets to calls, starts and stops the threads.

Nothing else knows all of them; nothing else starts a thread. The way of a call through it:

    nfsd thread   link.receive -> stack.receive -> connection -> TcpStream.readable
                  -> session -> PendingCall -> the leader (NFS) or a service's queue (the others)
                  -> run -> TcpTransport.send -> connection.send -> stack.flush -> link.send
"""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from logging import ERROR, INFO, WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Final

from appliance.addressing import Addressing, host_config
from appliance.clock import MILLISECOND, SECOND, Clock, Instant, SystemClock
from appliance.exports import ExportsFile, HostResolver, Problem, Severity, broken
from appliance.fsimage.durability import Durability
from appliance.ifconf import InterfaceConfig
from appliance.limits import (
    ARP_START_WAITS,
    CLIENT_IDLE_MAX,
    CLIENT_PROBE_INTERVAL,
    CLIENT_PROBES,
    DHCP_RELEASE_WAITS,
    ND_START_WAITS,
    STOP_GRACE,
)
from appliance.mountd.service import Mountd
from appliance.mounts import MountError, Mounts, MountSpec
from appliance.netstack.driver import FaultyDriver, StackDriver
from appliance.netstack.link.interface import ClosableLink, LinkError
from appliance.netstack.link.tap import TapLink
from appliance.netstack.stack import Stack
from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.patience import KeepAlive
from appliance.netstack.udp import UdpSocket
from appliance.netstack.wire.address import IPV6_BYTES, address_text
from appliance.nfsd.service import WRITE_VERIFIER_BYTES, Nfsd
from appliance.oncrpc.leader import Leader, ServiceQueue
from appliance.oncrpc.server import PendingCall, Registry, RpcServer
from appliance.oncrpc.transport import NETIDS, NETIDS6, Buffer, Endpoint, StreamUser
from appliance.rpcbind.service import Rpcbind
from appliance.trace import Counters, log
from appliance.vfs.errors import VfsError
from appliance.vfs.tree import Tree

if TYPE_CHECKING:
    from appliance.control import ControlServer
    from appliance.netstack.link.capture import CaptureSpec
    from appliance.netstack.link.fault import FaultLink, FaultRule

RPCBIND_PORT: Final = 111
NFS_PORT: Final = 2049
MOUNTD_PORT: Final = 20048

STOP_LOOK: Final = 5 * MILLISECOND


class MachineError(Exception):
    """What the user has to be told; `hint` says what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class StartError(MachineError):
    """The machine cannot start."""


class StopError(MachineError):
    """The machine has stopped, and something that was done may be lost."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that the user decides."""

    interface: InterfaceConfig
    tap_fd: int | None
    offload: bool
    mounts: tuple[MountSpec, ...]
    exports_file: Path | None
    nfsd_threads: int
    pcap: CaptureSpec | None
    sync: Durability = Durability.FULL
    control: Path | None = None
    faults: tuple[FaultRule, ...] = ()
    congestion: str = "cubic"


class Machine:
    """One appliance. `start` returns when it serves, `stop` when everything is durable."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._random = random.SystemRandom()
        self._threads: list[threading.Thread] = []
        self._journals: list[threading.Thread] = []  # these work until all is unmounted
        self._bodies: list[tuple[str, Callable[[], None]]] = []
        self._queues: list[ServiceQueue] = []
        self._mounts = Mounts(
            settings.mounts,
            durability=settings.sync,
            clock=self._clock,
            random=self._random,
            about_to_wait=self._about_to_wait,
        )
        self._control: ControlServer | None = None
        self._stopping = False
        self._leader: Leader | None = None
        self._faulty: FaultLink | None = None
        self.counters = Counters()

    # --- start ------------------------------------------------------------------------

    def start(self) -> None:
        """Mount, open the link, listen, start the threads. StartError: nothing is left behind."""
        allow_open_files()
        self._tree = self._mount_all()
        try:
            self._exports = self._read_exports()
            self._control = self._open_control()
            self._link = self._open_link()
        except BaseException:
            if self._control is not None:
                self._control.close()
            with suppress(VfsError):  # nothing has been done that could be lost
                self._tree.close()
            raise
        self._build()
        self._start_threads()
        self._wait_for_neighbours()

    def ready_line(self) -> str:
        """What stdout says when it serves."""
        interface, tap_fd = self._settings.interface, self._settings.tap_fd
        link = interface.tap if tap_fd is None else f"fd {tap_fd}"
        paths = " ".join(os.fsdecode(path) for path, _ in self._exports.table.listing())
        return f"ready: {self.addressing} ({link}) exports: {paths}"

    def _wait_for_neighbours(self) -> None:
        """Most hosts that have our address answer the first probe at once. After the start nothing
        that others say ends us."""
        addressing, until = self.addressing, self._clock.now() + ARP_START_WAITS
        self._wait_until(lambda: addressing.conflict is not None, until)
        # IPv6 has this test before an address is used at all (RFC 4862 section 5.4).
        until += ND_START_WAITS
        self._wait_until(lambda: not addressing.is_tentative or bool(addressing.conflict), until)
        conflict = addressing.conflict
        if conflict is not None:
            self.stop()
            hint = "choose another --ip, or stop that host; arping(8) shows who answers"
            raise StartError(conflict, hint)

    def remarks(self) -> list[str]:
        """What the user may not expect."""
        remarks = []
        if self._settings.exports_file is None:
            remarks.append("no --exports: / is exported to everybody, rw and no_root_squash")
        remarks += [f"frames are harmed on purpose: {f.text}" for f in self._settings.faults]
        return remarks + self._mounts.remarks()

    def _mount_all(self) -> Tree:
        try:
            return self._mounts.mount()
        except MountError as error:
            raise StartError(str(error), error.hint) from None

    def _about_to_wait(self) -> None:
        if self._leader is not None:  # at the start nobody is kept waiting
            self._leader.about_to_wait()

    def _read_exports(self) -> ExportsFile:
        mount_points = [spec.path.encode() for spec in self._settings.mounts]
        exports = ExportsFile(
            self._settings.exports_file, HostResolver(self._about_to_wait), mount_points
        )
        problems = exports.load()
        errors = [str(problem) for problem in problems if problem.severity is Severity.ERROR]
        if errors:
            raise StartError("\n".join(errors).removeprefix("error: "))
        log_problems(problems)
        return exports

    def _open_control(self) -> ControlServer | None:
        if self._settings.control is None:
            return None
        from appliance.control import ControlError, ControlServer, SnapshotVerbs

        mounts = {spec.path: filesystem for spec, filesystem in self._mounts.opened}
        snapshots = SnapshotVerbs(mounts, self._rolled_back)
        try:
            return ControlServer(self._settings.control, snapshots.verbs)
        except ControlError as error:
            raise StartError(str(error), error.hint) from None

    def _rolled_back(self) -> None:
        self._nfsd.rolled_back()

    def _open_link(self) -> ClosableLink:
        interface = self._settings.interface
        try:
            link = TapLink(
                interface.tap,
                fd=self._settings.tap_fd,
                mtu=interface.mtu,
                offload=self._settings.offload,
                hosts=interface.hosts,
            )
            return self._decorated(link)
        except LinkError as error:
            raise StartError(str(error), error.hint) from None
        except OSError as error:
            raise StartError(f"{error.filename}: {error.strerror}") from None

    def _decorated(self, link: TapLink) -> ClosableLink:
        """With the faults and the capture that the user wants."""
        pcap, faults = self._settings.pcap, self._settings.faults
        if faults:
            from appliance.netstack.link.capture import Capture
            from appliance.netstack.link.fault import FaultLink

            capture = Capture(pcap, self._clock, link.name) if pcap else None
            self._faulty = FaultLink(
                link, faults, counters=self.counters, clock=self._clock, capture=capture
            )
            return self._faulty
        if pcap:
            from appliance.netstack.link.pcap import PcapLink

            return PcapLink(link, pcap, self._clock, link.name)
        return link

    def _build(self) -> None:
        """Everything between the link and the file systems."""
        interface = self._settings.interface
        self._stack = Stack(
            self._link,
            host_config(interface),
            random=self._random,
            counters=self.counters,
            congestion=self._settings.congestion,
        )
        self.addressing = Addressing(interface, self._stack, self._random, self.counters)
        wire = StackDriver(self._stack, self._link)
        if self._faulty is not None:
            wire = FaultyDriver(self._stack, self._faulty)
        self._leader = leader = Leader(wire, self._clock, self.counters)
        registry = Registry()
        netids = NETIDS + NETIDS6 if self._stack.ip.speaks_ipv6 else NETIDS
        self._rpc = RpcServer(registry, self.counters, self._clock)
        self._nfsd = Nfsd(
            self._tree,
            self._exports,
            self._clock,
            write_verifier=self._random.randbytes(WRITE_VERIFIER_BYTES),
        )
        services = (
            (self._nfsd, NFS_PORT, leader.submit),
            (Mountd(self._tree, self._exports), MOUNTD_PORT, self._own_thread(leader, "mountd")),
            (
                Rpcbind(registry, self.counters, self._clock),
                RPCBIND_PORT,
                self._own_thread(leader, "rpcbind"),
            ),
        )
        for service, port, submit in services:
            for program in service.programs:
                registry.add(program, service, submit, port=port, netids=netids)
            self._stack.tcp.listen(port, self._accept)
            self._listen_udp(port)

    def _accept(self, connection: Connection) -> TcpStream:
        patience = KeepAlive(CLIENT_IDLE_MAX, CLIENT_PROBE_INTERVAL, CLIENT_PROBES)
        connection.keep_alive(patience)
        stream = TcpStream(self._rpc.stream(TcpTransport(connection)))
        connection.on_closed = stream.closed
        return stream

    def _listen_udp(self, port: int) -> None:
        addresses = self._stack.ip.addresses

        def receive(source: bytes, source_port: int, destination: bytes, data: memoryview) -> None:
            peer = Endpoint(address_text(source), source_port)
            ours = destination if destination in addresses else None
            # What was asked of everybody is answered from the address that suits the asker.
            local = Endpoint(address_text(ours or addresses.source_for(source) or source), port)
            self._rpc.datagram(UdpTransport(socket, source, peer, local, ours), data)

        socket = self._stack.udp.bind(port, receive)

    def _own_thread(self, leader: Leader, name: str) -> Callable[[PendingCall], None]:
        """The queue of a service with a thread of its own."""
        queue = ServiceQueue()
        self._queues.append(queue)
        self._bodies.append((name, partial(leader.serve_queue, queue)))
        return queue.submit

    def _start_threads(self) -> None:
        leader = self._leader
        assert leader is not None, "built before"
        for number in range(self._settings.nfsd_threads):
            self._bodies.append((f"nfsd-{number}", leader.work))
        self._bodies.append(("ticker", leader.tick))
        if self._control is not None:
            self._bodies.append(("control", self._control.serve))
        with leader.lock:
            self.addressing.start(self._clock.now())
        for filesystem in self._tree.filesystems:
            if filesystem.has_background_work:
                body = filesystem.run_in_background
                self._journals.append(self._start_thread("journal", body))
        for name, body in self._bodies:
            self._threads.append(self._start_thread(name, body))

    def _start_thread(self, name: str, body: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._run, args=(name, body), name=name, daemon=True)
        thread.start()
        return thread

    def _run(self, name: str, body: Callable[[], None]) -> None:
        """A thread: its body, entered again when something that should not happen has happened.
        What did it, a frame or a call, is gone; everybody else is served on."""
        name_this_thread(name)
        while not self._stopping:
            try:
                body()
                return
            except Exception:
                self.counters["machine.exception"] += 1
                log.exception("event=exception thread=%s", name)

    # --- while it runs ------------------------------------------------------------------

    def reload(self) -> None:
        """SIGHUP: read the exports file again. Calls in progress go on with the table they have."""
        problems = self._exports.load()
        log_problems(problems)
        if broken(problems):
            log.error("event=reload result=kept-old-exports")

    def log_counters(self) -> None:
        """SIGUSR1."""
        log.warning("event=counters %s", self.counters)

    # --- stop -----------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more calls, finish those in progress, held ones too, close connections in order,
        and unmount. StopError: that has failed."""
        leader, now = self._leader, self._clock.now
        assert leader is not None, "stop comes after start"
        self._stopping = True
        deadline = now() + STOP_GRACE
        if self._control is not None:
            self._control.stop()
        with leader.lock:
            self._rpc.stop_taking()
        self._wait_until(lambda: leader.is_idle, deadline)
        with leader.lock:
            self._stack.close(now())
        self._wait_until(lambda: self._stack.is_quiet, deadline)
        with leader.lock:
            self.addressing.release()
        self._wait_until(lambda: not self.addressing.is_leaving, now() + DHCP_RELEASE_WAITS)
        with leader.lock:
            self.addressing.stop(now())
        leader.stop()
        for queue in self._queues:
            queue.close()
        self._link.close()
        for thread in self._threads:
            thread.join(max(0, deadline - now()) / SECOND)
        if self._control is not None:
            self._control.close()
        self._unmount()

    def _unmount(self) -> None:
        """Every file system, clean. With the last of it their threads return."""
        try:
            self._tree.close()
        except VfsError as error:
            raise StopError(
                f"not unmounted clean: {error.detail}",
                "what was changed last may be lost; check it before it is used again",
            ) from None
        finally:
            for thread in self._journals:
                thread.join(STOP_GRACE / SECOND)

    def _wait_until(self, condition: Callable[[], bool], deadline: Instant) -> None:
        while not condition() and self._clock.now() < deadline:
            time.sleep(STOP_LOOK / SECOND)


class TcpTransport:
    """One connection, as RPC sees it: where replies go."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.netid = "tcp6" if len(connection.peer_address) == IPV6_BYTES else "tcp"
        self.peer = Endpoint(address_text(connection.peer_address), connection.peer_port)
        self.local = Endpoint(address_text(connection.local_address), connection.local_port)
        self.send = connection.send
        self.pause = connection.pause
        self.resume = connection.resume
        self.close = connection.close
        self.abort = connection.abort

    @property
    def unsent_bytes(self) -> int:
        return self._connection.unsent_bytes


class TcpStream:
    """One connection, as TCP sees it: what it tells goes to a session of RPC.

    Apart from TcpTransport, which the session holds: when the connection lets go of its user, no
    ring is left.
    """

    __slots__ = ("_session",)

    def __init__(self, session: StreamUser) -> None:
        self._session = session

    def readable(self, connection: Connection) -> None:
        self._session.text_arrived(connection.receive())

    def room_again(self, connection: Connection) -> None:
        self._session.room_again()

    def ended(self, connection: Connection, reason: str | None) -> None:
        self._session.ended()

    def closed(self, reason: str | None) -> None:
        self._session.gone()


class UdpTransport:
    """Where one datagram came from."""

    unsent_bytes = 0

    def __init__(
        self,
        socket: UdpSocket,
        address: bytes,
        peer: Endpoint,
        local: Endpoint,
        ours: bytes | None,
    ) -> None:
        """`ours`: the address that was asked; None: it was asked of everybody."""
        self._socket = socket
        self.netid = "udp6" if len(address) == IPV6_BYTES else "udp"
        self._address = address
        self._ours = ours
        self.peer = peer
        self.local = local

    def send(self, buffers: Sequence[Buffer]) -> None:
        self._socket.send_to(self._address, self.peer.port, buffers, self._ours)

    def pause(self) -> None:
        """Datagrams are not held back: what is too much is dropped."""

    def resume(self) -> None:
        """See pause."""

    def close(self) -> None:
        """There is nothing to close."""

    abort = close


def allow_open_files() -> None:
    """As many as we may have: a served directory keeps files open, in proportion."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def name_this_thread(name: str) -> None:
    """As `ps -T` shows it. (Python itself names threads only from 3.14 on.)"""
    with suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name)


def log_problems(problems: Sequence[Problem]) -> None:
    """What an exports file has that is not as its author may think."""
    levels = {Severity.ERROR: ERROR, Severity.WARNING: WARNING, Severity.NOTE: INFO}
    for problem in problems:
        log.log(levels[problem.severity], "event=exports %s", str(problem).replace("\n", " "))
