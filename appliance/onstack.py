"""onstack: runs a Python program on a TCP/IP stack of its own, with an address of its own.

    onstack --tap tap1 --ip 10.0.0.7 -m http.server 8000
    onstack --tap tap1 --ip 10.0.0.7 --name nas=10.0.0.5 fetch.py nas

The program is not changed and knows nothing of it (netstack/sockets). It needs a TAP interface, as
rumpnfsd does, and ends with the exit code of the program.
"""

from __future__ import annotations

import argparse
import os
import random
import runpy
import sys
from collections.abc import Sequence
from typing import Final

from appliance import trace
from appliance.addressing import host_config
from appliance.clock import SECOND
from appliance.ifconf import ConfigError, InterfaceConfig, interface_config
from appliance.netstack.link.interface import LinkError
from appliance.netstack.link.tap import TapLink
from appliance.netstack.loop import Loop
from appliance.netstack.sockets import Sockets, installed
from appliance.netstack.stack import Stack
from appliance.trace import Counters
from appliance.words import Parser, UsageError, fail

_DESCRIPTION: Final = "Run a Python program on a TCP/IP stack of its own, on a TAP interface."
_EPILOG: Final = """\
examples:
  onstack --tap tap1 --ip 10.0.0.7 -m http.server 8000
  onstack --tap tap1 --ip 10.0.0.7 --name nas=10.0.0.5 fetch.py nas
"""

ADDRESS_PATIENCE: Final = 5 * SECOND
"""For the question whether somebody else has an IPv6 address: it takes one (RFC 4862)."""


def main(words: Sequence[str] | None = None) -> int:
    """Run it; the exit code."""
    try:
        options = _parser().parse_args(words)
        if not options.program:
            raise UsageError("which program? FILE or -m MODULE")
        names = dict(_name(text) for text in options.name)
        interface = interface_config(
            tap=options.tap,
            ip=options.ip,
            gateway=options.gateway,
            route=options.route,
            host_ip=options.host_ip,
            no_host_ip=options.no_host_ip,
        )
        if interface.dhcp:
            raise UsageError("here, --ip is an address", "only rumpnfsd asks a DHCP server")
        trace.start()
        link = TapLink(interface.tap, mtu=interface.mtu, hosts=interface.hosts)
    except (UsageError, ConfigError) as error:
        return fail(2, str(error), getattr(error, "hint", "") or "onstack --help")
    except LinkError as error:
        return fail(1, str(error), error.hint)
    with Loop(_stack(link, interface), link) as loop, installed(Sockets(loop, names)):
        ours = loop.stack.ip.addresses
        # A program that binds to an address that is still asked about would fail.
        loop.until(lambda: all(given.address in ours for given in ours), ADDRESS_PATIENCE)
        return _run(options.program, is_module=options.module)


def _parser() -> Parser:
    made = Parser(
        prog="onstack",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--tap", default="tap0", help="the interface; made if it is not there")
    made.add_argument(
        "--ip", required=True, action="append", metavar="ADDR[/LEN]", help="our address; repeatable"
    )
    made.add_argument(
        "--gateway", action="append", metavar="ADDR", help="the router to everywhere else"
    )
    made.add_argument(
        "--route",
        action="append",
        default=[],
        metavar="NETWORK/LEN,via=ADDR",
        help="a network behind another router; repeatable",
    )
    made.add_argument(
        "--host-ip",
        action="append",
        metavar="ADDR[/LEN]",
        help="of the host, on a TAP that is made",
    )
    made.add_argument("--no-host-ip", action="store_true", help="leave the host's side alone")
    made.add_argument(
        "--name", action="append", default=[], metavar="NAME=ADDR", help="a host by name"
    )
    made.add_argument("-m", dest="module", action="store_true", help="the program is a module")
    made.add_argument("program", nargs=argparse.REMAINDER, metavar="PROGRAM ...")
    return made


def _name(text: str) -> tuple[str, str]:
    name, equals, address = text.partition("=")
    if not (name and equals and address):
        raise UsageError(f"--name {text!r} is not NAME=ADDR")
    return name, address


def _stack(link: TapLink, interface: InterfaceConfig) -> Stack:
    return Stack(link, host_config(interface), random=random.SystemRandom(), counters=Counters())


def _run(program: Sequence[str], *, is_module: bool) -> int:
    """As python FILE or python -m MODULE would."""
    before = sys.argv
    sys.argv = list(program)
    sys.path.insert(0, "" if is_module else os.path.dirname(program[0]))
    try:
        if is_module:
            runpy.run_module(program[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        return 130
    finally:
        sys.argv = before
        del sys.path[0]
    return 0


if __name__ == "__main__":
    sys.exit(main())
