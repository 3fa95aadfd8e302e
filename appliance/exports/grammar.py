"""The grammar of exports(5): text -> lines of words, words -> bytes, and back.

A line is an absolute path and then words that each name a client or, after a "-", options for the
clients that follow. Words are separated by white space. Double quotes keep white space inside a
word, a backslash and three octal digits stand for one byte, a backslash at the end of a line joins
it to the next one (as one blank would), and a "#" where a word could begin starts a comment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from appliance.exports.problems import Report

_TOKEN = re.compile(
    r"""
      (?P<joint> \\ \n )
    | (?P<newline> \n )
    | (?P<blank> [^\S\n]+ )
    | (?P<comment> \# (?: \\\n | [^\n] )* )
    | (?P<word> (?: "[^"\n]*" | \\(?!\n) | [^\s"\\] )+ )
    | (?P<quote> "[^\n]* )      # the one thing left: a quote that does not end
    """,
    re.VERBOSE,
)
_SPECIAL = frozenset('"#\\(),')
_OCTAL = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(slots=True)
class Line:
    """One logical line. `number` is that of the first word's physical line."""

    number: int = 0
    words: list[str] = field(default_factory=list)


def lines(text: str, report: Report) -> Iterator[Line]:
    """The lines that say something. One with a quote that does not end is reported and left out."""
    number = 1
    line = Line()
    spoiled = False
    for token in _TOKEN.finditer(text.replace("\r\n", "\n") + "\n"):
        kind = token.lastgroup
        if kind == "word":
            line.number = line.number or number
            line.words.append(token.group())
        elif kind == "quote":
            report.line = number
            report.error('a quoted word has no closing "')
            spoiled = True
        elif kind == "comment" and "\n" in token.group():
            report.line = number
            report.warning(
                "this comment ends in a backslash and swallows the next line",
                "end the comment without a backslash",
            )
        elif kind == "newline":
            if line.words and not spoiled:
                yield line
            line = Line()
            spoiled = False
        number += token.group().count("\n")


def unquote(word: str) -> bytes:
    """What a word stands for: quotes taken off, octal escapes replaced."""
    plain = word.replace('"', "").encode("utf-8", "surrogateescape")
    return _OCTAL.sub(lambda escape: bytes([int(escape.group(1), 8)]), plain)


def quote(value: bytes) -> str:
    """A word that stands for `value`; letters of any script stay readable."""
    return "".join(
        character
        if character.isprintable() and not character.isspace() and character not in _SPECIAL
        else "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
        for character in text(value)
    )


def text(value: bytes) -> str:
    """`value` as text that `unquote` would turn back into the same bytes."""
    return value.decode("utf-8", "surrogateescape")


def path_of(word: str, report: Report) -> bytes | None:
    """The path that a line begins with; None (and reported) if it is none."""
    value = unquote(word)
    if not value.startswith(b"/"):
        report.error(
            f'a line begins with an absolute path, not with "{shown(value)}"',
            "paths name places in the appliance's own tree, in which / is the first image",
        )
        return None
    path = normal_path(value)
    if path is None:
        report.error(f'"{shown(value)}" is not a plain path', 'no ".", no "..", no NUL')
    return path


def normal_path(value: bytes) -> bytes | None:
    """`value` with single slashes, and none at the end; None if it is not absolute or has a
    component that could lead elsewhere ("." or "..")."""
    parts = [part for part in value.split(b"/") if part]
    if not value.startswith(b"/") or b"\0" in value or b"." in parts or b".." in parts:
        return None
    return b"/" + b"/".join(parts)


def shown(value: bytes) -> str:
    """`value` for a message: nothing that moves the cursor, and no longer than a terminal line."""
    word = "".join(c if c.isprintable() else "?" for c in text(value))
    return word if len(word) <= 60 else word[:57] + "..."


def split_client(word: str, report: Report) -> tuple[str, list[str]] | None:
    """The client's name and the words of its option list ("host(ro,sync)" -> "host", ["ro",
    "sync"]); None (and reported) if the parentheses do not match."""
    name, opened, rest = word.partition("(")
    if not opened and ")" not in name:
        return text(unquote(name)), []
    if not opened or not rest.endswith(")"):
        report.error(
            f'bad option list in "{shown(unquote(word))}"',
            "options stand in parentheses right after the client, without blanks: host(rw,sync)",
        )
        return None
    if "(" in rest or ")" in rest[:-1]:
        report.error(
            f'text after the option list in "{shown(unquote(word))}"',
            "put a blank between two clients",
        )
        return None
    return text(unquote(name)), split_options(rest[:-1])


def split_options(words: str) -> list[str]:
    """The words between the commas; escapes are replaced after that: \\054 is a comma in a path."""
    return [text(unquote(word)) for word in words.split(",") if word]
