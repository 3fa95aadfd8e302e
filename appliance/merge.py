"""`rumpnfsd merge IMAGE OVERLAYFILE`: the words of it, around fsimage/overlays.py.

Exit codes: 0 merged, 1 not (it can be tried again, also after it was killed), 2 the command line
cannot be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from appliance import trace
from appliance.fsimage.errors import ImageError
from appliance.fsimage.overlays import merge
from appliance.vfs.errors import VfsError
from appliance.words import Parser, UsageError, fail

_AGAIN: Final = "nothing is lost: run it again"


def main(words: Sequence[str]) -> int:
    """Merge; the exit code."""
    trace.start("warning")
    try:
        options = _parser().parse_args(words)
        merged = merge(options.image, options.overlay, discard_snapshots=options.discard_snapshots)
    except UsageError as error:
        return fail(2, str(error), error.hint)
    except ImageError as error:
        return fail(1, str(error), error.hint)
    except VfsError as error:
        return fail(1, error.detail, _AGAIN)
    except KeyboardInterrupt:
        return fail(1, "interrupted", _AGAIN)
    print(f"{options.image}: {merged} bytes merged")
    return 0


def _parser() -> Parser:
    made = Parser(
        prog="rumpnfsd merge",
        description="Write the changes that --image IMAGE,overlay=OVERLAYFILE has kept into the"
        " image. Afterwards the overlay is empty. It may be killed, and begun again.",
        allow_abbrev=False,
    )
    made.add_argument("image", metavar="IMAGE")
    made.add_argument("overlay", metavar="OVERLAYFILE")
    made.add_argument(
        "--discard-snapshots", action="store_true", help="merge although it holds snapshots"
    )
    return made
