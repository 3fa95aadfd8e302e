"""rumpnfsd, and `python -m appliance`."""

from __future__ import annotations

import sys

_INTERRUPTED = 130
"""The exit code of a shell for what SIGINT has ended."""


def main() -> int:
    """Run `cli.main`; the exit code. To import it takes a good part of a start, in which a user may
    change his mind."""
    try:
        from appliance import cli

        return cli.main()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
