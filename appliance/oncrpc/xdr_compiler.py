"""How XDR types become code: the source of one function, as the kinds of types write it.

A type is walked once. Each kind (xdr_kinds.py, xdr_composed.py) adds its lines to a Source; nested
structs are inlined, and words that lie side by side, also across the borders of nested structs,
are gathered in `run` and become one struct call. Two rules keep order, and no kind thinks of its
neighbours:

1. `emit` writes out the run first, so a line never comes before the words in front of it.
2. Where the code branches, the run goes into every branch and joins what begins there.

A decoder is a function (buf, at, rest) -> (value, at). An encoder is one of (value, out) -> bulk:
`out` takes the small pieces, and bulk data, always the last field, is handed back uncopied. For
`struct nfstime3 { uint32 seconds; uint32 nseconds; }` they are

    def decode_nfstime3(buf, at, rest):
        v1, v2 = c3(buf, at); at += 8
        return c4(v1, v2), at

    def encode_nfstime3(value, out):
        out(c1(value.seconds, value.nseconds))
        return None
"""

from __future__ import annotations

import linecache
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from struct import Struct
from typing import Any, Final

UNLIMITED: Final = 0xFFFFFFFF
"""The limit of `<>`: a length is one word."""


class XdrError(ValueError):
    """The bytes are not an encoding of the declared type, or the value has none."""


class Source(ABC):
    """The body of one function in the making, and the constants it uses."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"XdrError": XdrError}
        self.run: list[tuple[str, str]] = []  # format character, variable or expression
        self.bulk: str | None = None  # the variable of the bulk field: nothing may follow it
        self._depth = 1
        self._serial = 0

    def variable(self) -> str:
        self._serial += 1
        return f"v{self._serial}"

    def constant(self, value: object) -> str:
        self._serial += 1
        self.names[f"c{self._serial}"] = value
        return f"c{self._serial}"

    def word(self, fmt: str, expression: str) -> None:
        """A fixed number of bytes, in struct's notation, for the run."""
        if self.bulk:
            raise TypeError("bulk data must be the last field")
        self.run.append((fmt, expression))

    def prepare(self, line: str) -> None:
        """A line that needs nothing of the run, and may come before it."""
        self.lines.append("    " * self._depth + line)

    def emit(self, line: str) -> None:
        """A line after everything that came before."""
        self.flush()
        self.prepare(line)

    @contextmanager
    def block(self, header: str) -> Iterator[None]:
        """What is emitted inside is indented under `header`."""
        self.prepare(header)
        begin = len(self.lines)
        self._depth += 1
        yield
        self.flush()
        if len(self.lines) == begin:
            self.prepare("pass")
        self._depth -= 1

    def bound(self, count: str, limit: int) -> None:
        """Refuse a length, in a variable, that is over its declared limit."""
        if limit < UNLIMITED:
            self.prepare(f"if {count} > {limit}: raise XdrError('more than {limit} long')")

    def seal(self, variable: str) -> None:
        """`variable` holds the bulk data."""
        if self._depth != 1:
            raise TypeError("bulk data cannot be optional or repeated")
        self.bulk = variable

    def compile(self, name: str, parameters: str) -> Callable[..., Any]:
        """The function. Its text is its docstring, and what debuggers and tracebacks show."""
        text = f"def {name}({parameters}):\n" + "\n".join(self.lines) + "\n"
        filename = f"<xdr {name}>"
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
        exec(compile(text, filename, "exec"), self.names)
        function: Callable[..., Any] = self.names[name]
        function.__doc__ = text
        return function

    @abstractmethod
    def flush(self) -> None:
        """Turn the run into one struct call."""


class Decoder(Source):
    def take(self, fmt: str) -> str:
        """The variable that will hold the next word, after the run is flushed."""
        variable = self.variable()
        self.word(fmt, variable)
        return variable

    def flush(self) -> None:
        if not self.run:
            return
        layout = Struct(">" + "".join(fmt for fmt, _ in self.run))
        targets = "".join(f"{variable}, " for _, variable in self.run)
        self.run = []
        self.prepare(f"{targets}= {self.constant(layout.unpack_from)}(buf, at)")
        self.prepare(f"at += {layout.size}")


class Encoder(Source):
    def flush(self) -> None:
        if not self.run:
            return
        layout = Struct(">" + "".join(fmt for fmt, _ in self.run))
        expressions = [expression for _, expression in self.run]
        self.run = []
        if all(expression.isdecimal() for expression in expressions):
            self.prepare(f"out({self.constant(layout.pack(*map(int, expressions)))})")
        else:
            self.prepare(f"out({self.constant(layout.pack)}({', '.join(expressions)}))")

    def branch(self, *branches: tuple[str, Callable[[], None]]) -> None:
        """`if`, `elif`, `else`: the run goes on in each of them."""
        pending = self.run
        for header, body in branches:
            self.run = []
            with self.block(header):
                self.run = list(pending)
                body()
