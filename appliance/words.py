"""What all commands have in common: how a command line is refused, an error told, and a result
printed.

An error is a line `error: ...` on stderr, and if there is something to be done about it, a line
`hint: ...`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from typing import NoReturn


class UsageError(Exception):
    """The command line cannot be; told with a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Parser(argparse.ArgumentParser):
    """argparse, telling its errors as everything here does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, f"{self.prog} --help")


def tell(message: str, hint: str) -> None:
    """Tell an error."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def fail(code: int, message: str, hint: str) -> int:
    """Tell an error; the exit code to return with."""
    tell(message, hint)
    return code


def say(lines: Iterable[str]) -> None:
    """Print what was asked for. Who reads no further (`| head`) has enough: that is no error."""
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        # What Python still has, and flushes at the end, goes nowhere as well.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
