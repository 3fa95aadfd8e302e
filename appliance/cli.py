"""rumpnfsd: the words of the command line -> a machine that runs until it is told to stop.

stdout is data (the one line that says that it serves), stderr is talk. What is wrong is said as
`error: ...` and, on its own line, `hint: ...`. Exit codes: 0 stopped in order, 1 something failed,
2 the command line cannot be. `rumpnfsd fsck` and `rumpnfsd merge` are programs of their own, in
fsck.py and merge.py.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import trace
from appliance.fsimage.durability import Durability
from appliance.garbage import seldom_collected
from appliance.ifconf import (
    HOSTNAME_DEFAULT,
    MTU_DEFAULT,
    TTL_DEFAULT,
    ConfigError,
    interface_config,
)
from appliance.machine import (
    Machine,
    MachineError,
    Settings,
    StartError,
)
from appliance.mounts import MountSpec, parse_size
from appliance.netstack.link.capture import CaptureSpec
from appliance.netstack.tcp.cubic import ALGORITHMS
from appliance.words import Parser, UsageError, tell

if TYPE_CHECKING:
    from appliance.netstack.link.fault_spec import FaultRule

LOG_LEVELS = ("debug", "info", "warning", "error")
NFSD_THREADS_DEFAULT, NFSD_THREADS_MAX = 4, 64
MOUNT_OPTIONS = {("ro", ""), ("partition", "="), ("overlay", ""), ("overlay", "=")}
ADDRESS_LOOK = 0.02
ADDRESS_LOOKS_TOLD = 250
"""While there is no address: seconds between two looks, and after how many the user is told."""
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}

DESCRIPTION = (
    "Serve file-system images, directories or memory over NFS, at an IP address of its own."
)
EPILOG = """\
@PATH says where in the served tree something is mounted (default /): what follows the last @ before
a /. With ,ro it is served read-only. With ,overlay the image is only read, and changes are kept in
memory, or in the file OVERLAYFILE (without a comma in its name). Images may be compressed with
gzip, xz or zstd.

faults (probabilities as 1% or 0.01; times as 20ms; all keys of one --fault belong together):
  drop=P duplicate=P corrupt=P truncate=P   of the frames, cut into segments as on a wire
  reorder=P hold=TIME                       P of them wait for up to TIME (10ms) longer
  delay=TIME jitter=TIME                    all of them, and up to so much more
  rate=10mbit queue=64K burst=16K           a narrow wire, each way
  mtu=N                                     larger packets are lost without a word
  filter=EXPRESSION                         only these: in, out, tcp port 2049, host 10.0.0.9, ...
  nth=3 (nth=3-5)  between=5-10  seed=7     only these of them; only in these seconds

signals:
  HUP        read the exports file again
  TERM, INT  stop in order
  USR1       log how often what has happened

examples:
  rumpnfsd --tap tap0 --ip 10.0.0.5 --image fs.img
  rumpnfsd --ip 10.0.0.5/16 --memory 1G --directory /srv/data@/data,ro --exports exports.conf
  rumpnfsd --tap tap0 --ip dhcp --image fs.img
  rumpnfsd --check-exports exports.conf
  rumpnfsd --ip 10.0.0.5 --image fs.img,overlay=changes --control /run/nfs.ctl
  rumpnfsd --ip 10.0.0.5 --memory 1G --pcap run.pcapng --fault drop=1%,delay=20ms,seed=7

other commands:
  rumpnfsd fsck fs.img             check an image
  rumpnfsd merge fs.img changes    write an overlay into its image
  rumpctl --control /run/nfs.ctl   snapshots, while it serves
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run; the exit code."""
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["fsck"]:
        from appliance import fsck

        return fsck.main(words[1:])
    if words[:1] == ["merge"]:
        from appliance import merge

        return merge.main(words[1:])
    try:
        options = parser().parse_args(words)
        if options.check_exports is not None:
            return check_exports(options.check_exports)
        settings = settings_of(options)
        trace.start(options.log_level)
        return serve(settings, options.ready_fd)
    except (UsageError, ConfigError) as error:
        tell(str(error), error.hint)
        return 2
    except MachineError as error:
        tell(str(error), error.hint)
        return 1


def parser() -> Parser:
    made = Parser(
        prog="rumpnfsd",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action=Version, help="print the version and exit")
    network = made.add_argument_group("network")
    add_network(network)
    add_wire(network)
    tree = made.add_argument_group("what is served")
    for option, what, text in (
        (
            "--image",
            "FILE[@PATH][,ro][,partition=N][,overlay[=OVERLAYFILE]]",
            "a file-system image",
        ),
        ("--directory", "DIR[@PATH][,ro]", "a directory of the host"),
        ("--memory", "SIZE[@PATH]", "an empty file system in memory (64M, 2G, ...)"),
    ):
        tree.add_argument(
            option,
            metavar=what,
            action=Mount,
            dest="mounts",
            default=[],
            help=f"{text}; repeatable",
        )
    tree.add_argument(
        "--exports", metavar="FILE", type=Path, help="exports(5); default: all to all"
    )
    tree.add_argument(
        "--check-exports", metavar="FILE", type=Path, help="check a file, serve nothing"
    )
    add_running(made.add_argument_group("running"))
    return made


def add_network(network: argparse._ArgumentGroup) -> None:
    """The link, and who we are on it."""
    link = network.add_mutually_exclusive_group()
    link.add_argument("--tap", metavar="NAME", help="the TAP interface; made if need be (tap0)")
    link.add_argument("--tap-fd", metavar="N", type=int, help="a TAP that is open already")
    network.add_argument(
        "--ip",
        metavar="ADDR[/LEN]|dhcp|slaac",
        action="append",
        help="an address of the server (/24, /64), or who has one; may be repeated",
    )
    network.add_argument(
        "--gateway",
        metavar="ADDR",
        action="append",
        help="the router to other networks; one for IPv4, one for IPv6",
    )
    network.add_argument(
        "--route",
        metavar="NETWORK/LEN,via=ADDR",
        action="append",
        default=[],
        help="a network behind another router; of both families; repeatable",
    )
    network.add_argument(
        "--neighbour",
        metavar="ADDR=MAC",
        action="append",
        default=[],
        help="a host on the link that is not asked where it is; repeatable",
    )
    network.add_argument("--mac", metavar="MAC", help="Ethernet address (made of the IP address)")
    network.add_argument(
        "--hostname", metavar="NAME", default=HOSTNAME_DEFAULT, help="told to a DHCP server"
    )
    network.add_argument("--mtu", metavar="N", type=int, default=MTU_DEFAULT, help="(1500)")
    network.add_argument(
        "--ttl",
        metavar="N",
        type=int,
        default=TTL_DEFAULT,
        help="routers that a packet passes (64)",
    )
    host = network.add_mutually_exclusive_group()
    host.add_argument(
        "--host-ip",
        metavar="ADDR[/LEN]",
        action="append",
        help="the host's address on a TAP that is made here; one for IPv4, one for IPv6",
    )
    host.add_argument("--no-host-ip", action="store_true", help="leave the host's side alone")
    network.add_argument("--no-offload", action="store_true", help="plain frames, own checksums")
    network.add_argument(
        "--congestion", choices=ALGORITHMS, default="cubic", help="TCP congestion control (cubic)"
    )


def add_wire(network: argparse._ArgumentGroup) -> None:
    """What is seen of the wire, and what is done to it."""
    network.add_argument(
        "--pcap",
        metavar="FILE[,size=SIZE[,files=N]]",
        help="record every frame, in FILE.pcapng or FILE (pcap)",
    )
    network.add_argument(
        "--fault",
        metavar="KEY=VALUE,...",
        action="append",
        default=[],
        help="lose, delay, damage frames on purpose; repeatable (see below)",
    )


def add_running(run: argparse._ArgumentGroup) -> None:
    """How it runs."""
    run.add_argument(
        "--sync",
        choices=[mode.value for mode in Durability],
        default=Durability.FULL.value,
        help="what is acknowledged survives a power cut (full), a kill (process), or is on its way"
        " (lazy)",
    )
    run.add_argument("--control", metavar="PATH", type=Path, help="a socket for rumpctl")
    run.add_argument(
        "--nfsd-threads", metavar="N", type=int, default=NFSD_THREADS_DEFAULT, help="(4)"
    )
    run.add_argument("--ready-fd", metavar="N", type=int, help="gets a newline when it serves")
    run.add_argument("--log-level", metavar="LEVEL", choices=LOG_LEVELS, default="warning")


class Mount(argparse.Action):
    """Keeps --image, --directory and --memory in the order in which they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        assert option_string is not None
        spec = parse_mount(option_string.removeprefix("--"), str(values))
        namespace.mounts = [*namespace.mounts, spec]


def parse_mount(kind: str, text: str) -> MountSpec:
    """SOURCE[@PATH][,ro][,partition=N][,overlay[=FILE]].

    Options are cut off from the end, as long as what stands behind the last comma is one. Of the
    rest, what stands behind the last "@/" is the PATH. So "@" and "," in file names need nothing;
    a name that itself ends like an option, or has "@/" in it, is followed by its PATH:
    "backup,ro@/" is the file "backup,ro" at "/". UsageError.
    """
    rest, read_only, partition, overlay = text, False, None, None
    said = set[str]()
    while True:
        before, comma, option = rest.rpartition(",")
        word, equals, _ = option.partition("=")
        if not comma or "@/" in option or (word, equals) not in MOUNT_OPTIONS:
            break
        if word in said:
            raise UsageError(f'"{word}" is said twice in --{kind} {text}')
        said.add(word)
        match word:
            case "ro":
                read_only = True
            case "partition":
                partition = parse_partition(kind, option)
            case _:
                overlay = parse_overlay(kind, option)
        rest = before
    source, at, path = rest.rpartition("@/")
    if not at:
        source, path = rest, ""
    if not source:
        raise UsageError(f"nothing is named in --{kind} {text}")
    if read_only and kind == "memory":
        raise UsageError("an empty file system that is only read is of no use", "leave out ,ro")
    if read_only and overlay is not None:
        raise UsageError(
            ",ro and ,overlay exclude each other", "with ,overlay the image itself is only read"
        )
    return MountSpec(kind, source, "/" + path.strip("/"), read_only, partition, overlay)


def parse_overlay(kind: str, option: str) -> str:
    """overlay (in memory: "") or overlay=FILE."""
    if kind != "image":
        raise UsageError(f"--{kind} has no overlay", "only --image has")
    _, equals, file = option.partition("=")
    if equals and not file:
        raise UsageError("overlay= names no file", "overlay alone keeps changes in memory")
    return file


def parse_partition(kind: str, option: str) -> int:
    number = option.removeprefix("partition=")
    if not (number.isascii() and number.isdigit() and len(number) < 6 and int(number)):
        raise UsageError(f'"{option}" is no partition', "partition=1 is the first")
    if kind != "image":
        raise UsageError(f"--{kind} has no partitions", "only --image has")
    return int(number)


def parse_capture(text: str) -> CaptureSpec:
    """FILE[,size=SIZE][,files=N], options in any order. UsageError."""
    rest, options = text, dict[str, int]()
    while True:
        before, comma, option = rest.rpartition(",")
        word, equals, value = option.partition("=")
        if not comma or word not in ("size", "files") or not equals:
            break
        try:
            options[word] = parse_size(value)
        except ConfigError as error:
            raise UsageError(f"--pcap {text}: {error}", error.hint) from None
        rest = before
    if not rest:
        raise UsageError(f"no file is named in --pcap {text}")
    if "files" in options and "size" not in options:
        raise UsageError("files= needs size=", f"for example --pcap {rest},size=10M,files=3")
    try:
        return CaptureSpec(Path(rest), **options)
    except ValueError as error:
        raise UsageError(f"--pcap {text}: {error}") from None


def fault_rule(text: str) -> FaultRule:
    """One --fault. UsageError."""
    from appliance.netstack.link.fault_spec import FaultError, parse_fault

    try:
        return parse_fault(text)
    except FaultError as error:
        raise UsageError(f"--fault {text}: {error}", error.hint) from None


def settings_of(options: argparse.Namespace) -> Settings:
    """What the words mean, checked as far as words go."""
    if __debug__ is False:
        raise UsageError(
            "python -O leaves out checks that are part of the product", "run without -O"
        )
    if options.ip is None:
        raise UsageError("--ip is missing", "an address for the server, for example --ip 10.0.0.5")
    if not options.mounts:
        raise UsageError(
            "there is nothing to serve", "--image FILE, --directory DIR or --memory SIZE"
        )
    if not 1 <= options.nfsd_threads <= NFSD_THREADS_MAX:
        raise UsageError(f"--nfsd-threads is 1 to {NFSD_THREADS_MAX}")
    return Settings(
        interface=interface_config(
            tap=options.tap or "tap0",
            ip=options.ip,
            gateway=options.gateway,
            route=options.route,
            mac=options.mac,
            mtu=options.mtu,
            host_ip=options.host_ip,
            no_host_ip=options.no_host_ip or options.tap_fd is not None,
            hostname=options.hostname,
            ttl=options.ttl,
            neighbours=options.neighbour,
            machine=this_machine() if options.mac is None else "",
        ),
        tap_fd=options.tap_fd,
        offload=not options.no_offload,
        mounts=apart(options.mounts),
        exports_file=options.exports,
        nfsd_threads=options.nfsd_threads,
        pcap=parse_capture(options.pcap) if options.pcap else None,
        sync=Durability(options.sync),
        control=options.control,
        faults=tuple(fault_rule(text) for text in options.fault),
        congestion=options.congestion,
    )


def apart(mounts: Sequence[MountSpec]) -> tuple[MountSpec, ...]:
    """The mounts. UsageError: a file is named twice for images, and would be written to; as two
    partitions of a disk it may be."""
    files: list[tuple[str, bool, int | None]] = []
    for spec in mounts:
        if spec.kind == "image":
            partition = spec.partition if spec.overlay is None else None
            files.append((spec.source, spec.is_written, partition))
            if spec.overlay:
                files.append((spec.overlay, True, None))
    for (one, is_written, part), (other, other_is, other_part) in itertools.combinations(files, 2):
        are_partitions = part is not None and other_part is not None and part != other_part
        if (is_written or other_is) and not are_partitions and is_same_file(one, other):
            raise UsageError(
                f"{other} is named twice, and would be written to",
                "an image is only read with ,ro or ,overlay; an overlay file is for one image",
            )
    return tuple(mounts)


def is_same_file(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # one of them is not there yet, or they are the same that is not
        return os.path.abspath(one) == os.path.abspath(other)


def this_machine() -> str:
    """What tells this host, and this network namespace of it, from others."""
    return f"{os.uname().nodename} {os.stat('/proc/self/ns/net').st_ino}"


def check_exports(path: Path) -> int:
    """--check-exports: the table on stdout, or what is wrong on stderr."""
    from appliance.exports import check

    return check(path, sys.stdout, sys.stderr)


def serve(settings: Settings, ready_fd: int | None) -> int:
    """Start, say so, obey signals, stop."""
    # Blocked in every thread: this one takes them when it likes to.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return serve_until_told(settings, ready_fd)
    finally:
        while signal.sigtimedwait(SIGNALS, 0):
            pass  # said twice; that it ended well stays true
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve_until_told(settings: Settings, ready_fd: int | None) -> int:
    machine = Machine(settings)
    machine.start()
    try:
        for remark in machine.remarks():
            print(f"note: {remark}", file=sys.stderr)
        if not wait_for_address(machine):
            return 0
        print(machine.ready_line(), flush=True)
        if ready_fd is not None:
            tell_ready(ready_fd)
        notify("READY=1")
        with seldom_collected():
            obey_signals(machine)
        notify("STOPPING=1")
    finally:
        machine.stop()
    return 0


def wait_for_address(machine: Machine) -> bool:
    """Until the machine has one, and say from time to time what it waits for. It serves at once
    when there is one, however late. False: it was told to stop meanwhile."""
    looks = 0
    while not machine.addressing.has_address:
        number = signal.sigtimedwait(SIGNALS, ADDRESS_LOOK)
        if number is not None and not obey(machine, number.si_signo):
            return False
        looks += 1
        if looks % ADDRESS_LOOKS_TOLD == 0:
            waits_for = machine.addressing.waits_for
            print(f"note: still without an address: {waits_for}", file=sys.stderr, flush=True)
            notify(f"STATUS=without an address: {waits_for}")
    return True


def obey_signals(machine: Machine) -> None:
    """Until one of them says stop."""
    while obey(machine, signal.sigwait(SIGNALS)):
        pass


def obey(machine: Machine, number: int) -> bool:
    """False: it says stop."""
    if number == signal.SIGHUP:
        machine.reload()
    elif number == signal.SIGUSR1:
        machine.log_counters()
    else:
        return False
    return True


def tell_ready(fd: int) -> None:
    try:
        os.write(fd, b"\n")
        os.close(fd)
    except OSError as error:
        raise StartError(f"--ready-fd {fd}: {error.strerror}") from None


def notify(state: str) -> None:
    """sd_notify(3): tell the service manager, where there is one."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
        try:
            manager.connect("\0" + address[1:] if address.startswith("@") else address)
            manager.sendall(state.encode())
        except OSError as error:
            trace.log.warning("NOTIFY_SOCKET=%s: %s", address, error.strerror)


class Version(argparse.Action):
    """--version: looked up only when it is asked for, because it takes longer than the rest."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        print(f"rumpnfsd {own_version()}")
        parser.exit()


def own_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("rumpnfsd")
    except PackageNotFoundError:
        return "(not installed)"
