"""What is wrong with an exports file: values, collected while it is read, told all at once.

An error means that what the line says cannot be known; a warning, that it is known and probably not
what was meant; a note, that a part of it changes nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Severity(Enum):
    """How bad it is; the value is the word that the user sees."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to tell, and where. Line 0 is the file as a whole."""

    severity: Severity
    filename: str
    line: int
    text: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.filename}:{self.line}" if self.line else self.filename
        hint = f"\nhint: {self.hint}" if self.hint else ""
        return f"{self.severity.value}: {where}: {self.text}{hint}"


class Report:
    """Collects the problems of one file. `line` is where the reader is."""

    def __init__(self, filename: str) -> None:
        self.filename = filename
        self.line = 0
        self.problems: list[Problem] = []

    def error(self, text: str, hint: str = "") -> None:
        self._add(Severity.ERROR, text, hint)

    def warning(self, text: str, hint: str = "") -> None:
        self._add(Severity.WARNING, text, hint)

    def note(self, text: str, hint: str = "") -> None:
        self._add(Severity.NOTE, text, hint)

    def _add(self, severity: Severity, text: str, hint: str) -> None:
        self.problems.append(Problem(severity, self.filename, self.line, text, hint))


def broken(problems: Sequence[Problem]) -> bool:
    """Whether an error is among them."""
    return any(problem.severity is Severity.ERROR for problem in problems)
