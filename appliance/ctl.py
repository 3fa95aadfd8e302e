"""rumpctl: tells a running rumpnfsd what to do, over its control socket (see control.py).

stdout is data, stderr is talk. Exit codes: 0 done, 1 it said no or cannot be reached, 2 the command
line cannot be.
"""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from appliance import limits
from appliance.clock import SECOND
from appliance.words import Parser, UsageError, fail, say

_DESCRIPTION: Final = "Tell a running rumpnfsd (started with --control PATH) what to do."
_EPILOG: Final = """\
examples:
  rumpctl --control /run/nfs.ctl snapshot create clean
  rumpctl --control /run/nfs.ctl snapshot rollback clean
  rumpctl --control /run/nfs.ctl --json snapshot list --image /data
"""


class _RefusedError(Exception):
    """The server says no, or nothing."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def main(words: Sequence[str] | None = None) -> int:
    """Ask; the exit code."""
    try:
        options = _parser().parse_args(words)
        result = _ask(options.control, _request(options))
    except UsageError as error:
        return fail(2, str(error), "rumpctl --help")
    except _RefusedError as error:
        return fail(1, str(error), error.hint)
    if options.json:
        say([json.dumps(result)])
    elif options.action == "list":
        say(map(_line_of, result))
    return 0


def _parser() -> Parser:
    made = Parser(
        prog="rumpctl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--control", metavar="PATH", required=True, help="the server's socket")
    made.add_argument("--json", action="store_true", help="print the result as JSON")
    things = made.add_subparsers(dest="thing", metavar="snapshot", required=True)
    snapshot = things.add_parser("snapshot", help="states of an image that has an overlay")
    actions = snapshot.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, text in (
        ("create", "keep the present state"),
        ("rollback", "go back to a state: what came after it is gone"),
        ("delete", "keep a state no longer"),
        ("list", "name, time and size of what is kept"),
    ):
        parser = actions.add_parser(action, help=text)
        if action != "list":
            parser.add_argument("name", metavar="NAME")
        parser.add_argument(
            "--image", metavar="MOUNTPATH", help="where it is mounted, if there are several"
        )
    return made


def _request(options: argparse.Namespace) -> dict[str, Any]:
    request = {"verb": f"{options.thing}-{options.action}"}
    for key in ("name", "image"):
        value = getattr(options, key, None)
        if value is not None:
            request[key] = value
    return request


def _ask(path: str, request: dict[str, Any]) -> Any:
    """The result of a request."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as server:
        server.settimeout(limits.CONTROL_PATIENCE / SECOND)
        try:
            server.connect(path)
            server.sendall(json.dumps(request).encode() + b"\n")
            with server.makefile("rb") as replies:
                line = replies.readline(limits.CONTROL_REPLY_BYTES_MAX)
        except OSError as error:
            raise _RefusedError(
                f"{path}: {error.strerror or error}",
                "is it the PATH that a running rumpnfsd was given as --control?",
            ) from None
    try:
        reply = json.loads(line)
        if reply["ok"]:
            return reply["result"]
        refused = _RefusedError(str(reply["error"]), str(reply.get("hint", "")))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _RefusedError(f"{path}: this is no answer of a rumpnfsd") from None
    raise refused


def _line_of(snapshot: dict[str, Any]) -> str:
    created = datetime.fromtimestamp(snapshot["created_ns"] // SECOND, UTC)
    when = created.isoformat().replace("+00:00", "Z")
    return f"{snapshot['name']:<24} {when}  {snapshot['changed_bytes']:>14,} bytes changed"
