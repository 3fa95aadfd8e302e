"""`rumpnfsd fsck IMAGE`: is the file system in an image sound? The words of it, around
fsimage/ext4/check.

Findings go to stdout, one a line; everything else that is said while it works goes to stderr. Exit
codes are those of fsck(8): 0 sound, 4 something is wrong (and stays so: nothing is ever repaired
here), 8 it could not be checked, 16 the command line cannot be, 32 interrupted.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Final, TextIO

from appliance import trace
from appliance.fsimage.errors import ImageError
from appliance.fsimage.ext4.check import Report, examine
from appliance.fsimage.ext4.check.context import silent
from appliance.fsimage.image import open_device, part_of
from appliance.fsimage.probe import Kind, probe
from appliance.vfs.errors import VfsError
from appliance.words import Parser, UsageError, fail, say

SOUND: Final = 0
ERRORS_LEFT: Final = 4
OPERATIONAL_ERROR: Final = 8
USAGE_ERROR: Final = 16
CANCELLED: Final = 32

_BAR_CHARACTERS: Final = 40
_REPAIRS: Final = frozenset({"-a", "-p", "-y"})
"""What e2fsck has for it."""
_NAMED: Final = re.compile("(.+),partition=([0-9]{1,5})")

_DESCRIPTION: Final = (
    "Check an ext2, ext3 or ext4 image as e2fsck -fn does: nothing is repaired, nothing written."
    " Of a file system that was not unmounted, the journal is replayed in memory first."
)
_EPILOG: Final = "exit codes: 0 sound, 4 errors, 8 cannot be checked, 16 usage, 32 interrupted"


def main(words: Sequence[str]) -> int:
    """Check; the exit code."""
    trace.start("error")
    try:
        if _REPAIRS.intersection(words):
            raise UsageError("nothing is repaired here", "e2fsck repairs; try it on a copy")
        options = _parser().parse_args(words)
        file, partition = _as_served(options.image, options.partition)
        report = _examine(file, partition, _bar(options.quiet))
    except UsageError as error:
        return fail(USAGE_ERROR, str(error), error.hint)
    except ImageError as error:
        return fail(OPERATIONAL_ERROR, str(error), error.hint)
    except VfsError as error:
        return fail(OPERATIONAL_ERROR, error.detail, "")
    except KeyboardInterrupt:
        return fail(CANCELLED, "interrupted", "")
    _tell(options.image, report, quiet=options.quiet)
    return SOUND if report.clean else ERRORS_LEFT


def _parser() -> Parser:
    made = Parser(
        prog="rumpnfsd fsck", description=_DESCRIPTION, epilog=_EPILOG, allow_abbrev=False
    )
    made.add_argument("image", metavar="IMAGE", help="a file (FILE,partition=N), or a block device")
    made.add_argument("--partition", metavar="N", type=int, help="of a whole disk, which partition")
    made.add_argument("-q", "--quiet", action="store_true", help="only say what is wrong")
    for option, text in (("-f", "check also what looks sound"), ("-n", "change nothing")):
        made.add_argument(option, action="store_true", help=f"{text}: always so, as in e2fsck")
    return made


def _as_served(image: str, partition: int | None) -> tuple[str, int | None]:
    """The file, and the partition of it, which may be named as in --image: FILE,partition=N."""
    named = _NAMED.fullmatch(image)
    if named is None or partition is not None or os.path.exists(image):
        return image, partition
    return named[1], int(named[2])


def _examine(file: str, partition: int | None, bar: Bar | None) -> Report:
    device = open_device(file)
    try:
        part, name = part_of(device, file, partition)
        return examine(part, name, bar.show if bar else silent)
    except ImageError as error:
        kind, what, hint = probe(device)
        if kind is Kind.OTHER and partition is None:
            raise ImageError(f"{file}: it is {what}", hint) from None
        raise ImageError(f"{file}: {error}", error.hint) from None
    finally:
        if bar:
            bar.clear()
        device.close()


def _tell(name: str, report: Report, *, quiet: bool) -> None:
    lines = list(map(str, report.findings))
    if report.more:
        lines.append(f"and {report.more} more findings")
    if not quiet:
        for note in report.notes:
            print(f"note: {note}", file=sys.stderr)
        lines.append(
            f"{name}: {report.files}/{report.files_max} files,"
            f" {report.blocks}/{report.blocks_max} blocks"
        )
    say(lines)


# --- the bar -----------------------------------------------------------------


def _bar(quiet: bool) -> Bar | None:
    return Bar(sys.stderr) if sys.stderr.isatty() and not quiet else None


class Bar:
    """How far it is, in one line of a terminal that is written again and again."""

    def __init__(self, terminal: TextIO) -> None:
        self._terminal: Final = terminal
        self._shown = ""

    def show(self, what: str, done: int, total: int) -> None:
        """`done` of `total` is done of `what`."""
        share = done / total if total else 1.0
        full = int(share * _BAR_CHARACTERS)
        line = f"{what:<12} |{'=' * full:<{_BAR_CHARACTERS}}| {share:4.0%}"
        if line != self._shown:
            self._shown = line
            self._terminal.write(f"\r{line}")
            self._terminal.flush()

    def clear(self) -> None:
        """Leave an empty line."""
        if self._shown:
            self._terminal.write("\r" + " " * len(self._shown) + "\r")
            self._terminal.flush()
