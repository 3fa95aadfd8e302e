"""The habits of this code base that a machine can check. Each test is one of them, and lists every
place that breaks it. (Layout, types, imports and complexity are the business of ruff, mypy and
import-linter: `make check` runs them all.)
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
PRODUCT = sorted((TOP / "appliance").rglob("*.py"))
PYTHON = [
    *PRODUCT,
    *sorted(
        file for folder in ("tests", "images", "tools") for file in (TOP / folder).rglob("*.py")
    ),
]
TEXT = [
    *PYTHON,
    *(TOP / name for name in ("Makefile", ".ci/run", "pyproject.toml", "exports.conf")),
    *sorted(TOP.glob("*.md")),
    *sorted((TOP / "docs").rglob("*.md")),
    *sorted(file for file in (TOP / "tools").iterdir() if file.is_file()),
]

FILE_LINES_MAX = 600
TABLE_FILE_LINES_MAX = 900
"""protocol.py and layout.py are the RFC's or the disk's own lists, and limits.py is ours: nobody
should cut them up."""
FUNCTION_LINES_MAX = 60

ENTRY_POINTS = {"appliance", "appliance.__main__", "appliance.ctl", "appliance.onstack"}
FROM_A_STANDARD = (
    "netstack/wire",
    "netstack/ip",
    "netstack/tcp",
    "netstack/dhcp",
    "oncrpc",
    "nfsd/v3",
    "mountd",
    "rpcbind",
)
"""Folders in which a file is a piece of a standard, and says of which one."""
NAMES_A_STANDARD = re.compile(r"RFC \d{3,5}|IEEE 802|virtio|exports\(5\)")
NOT_FROM_A_STANDARD = {
    "netstack/ip/path.py",
    "netstack/wire/errors.py",
    "oncrpc/leader.py",
    "oncrpc/transport.py",
    "oncrpc/xdr_compiler.py",
}
"""Our own seams and machinery, of which no standard speaks."""

CLOCKS = {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "now"}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def at(file: Path, line: int) -> str:
    return f"{file.relative_to(TOP)}:{line}"


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(TOP).with_suffix("").parts).removesuffix(".__init__")


def test_files_are_short() -> None:
    long = []
    for file in PYTHON:
        table = file.name in ("protocol.py", "layout.py", "limits.py")
        count = len(file.read_text().splitlines())
        if count > (TABLE_FILE_LINES_MAX if table else FILE_LINES_MAX):
            long.append(f"{at(file, count)}: does it hold a second subject?")
    assert not long


def test_functions_are_short() -> None:
    long = [
        f"{at(file, node.lineno)}: {node.name} has {length} lines"
        for file in PYTHON
        for node in ast.walk(tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long


def test_every_module_says_what_it_is() -> None:
    assert not [at(file, 1) for file in PYTHON if not ast.get_docstring(tree(file))]


def test_modules_from_a_standard_name_it() -> None:
    silent = []
    for file in PRODUCT:
        place = file.relative_to(TOP / "appliance").as_posix()
        exempt = place in NOT_FROM_A_STANDARD or file.name == "__init__.py"
        if place.startswith(FROM_A_STANDARD) and not exempt:
            silent += [] if NAMES_A_STANDARD.search(file.read_text()) else [at(file, 1)]
    assert not silent


def imports(file: Path) -> Iterator[str]:
    """What a file imports, each name also as the module that it may be."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, at(file, node.lineno)
            yield node.module or ""
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_every_module_is_used() -> None:
    used = {name for file in PRODUCT for name in imports(file) if module_name(file) != name}
    packages = {module_name(file) for file in PRODUCT if file.name == "__init__.py"}
    modules = {module_name(file) for file in PRODUCT} - packages
    assert sorted(modules - used - ENTRY_POINTS) == []


@pytest.mark.parametrize("name", ["limits.py", "image_limits.py"])
def test_every_limit_is_used(name: str) -> None:
    limits = TOP / "appliance" / name
    names = [
        n.target.id
        for n in tree(limits).body
        if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
    ]
    text = "\n".join(file.read_text() for file in PRODUCT if file != limits)
    own = limits.read_text()
    assert names
    unused = [
        name
        for name in names
        if not re.search(rf"\b{name}\b", text) and len(re.findall(rf"\b{name}\b", own)) < 2
    ]
    assert not unused


def comment_blocks(file: Path) -> Iterator[tuple[int, str]]:
    """Comments that stand alone on their lines, those of neighbouring lines as one."""
    first, block = 0, ""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            first = first or token.start[0]
            block += token.string.lstrip("#").removeprefix(" ") + "\n"
        elif token.type not in (tokenize.NL, tokenize.COMMENT) and block:
            yield first, block
            first, block = 0, ""


def is_code(text: str) -> bool:
    """Whether these words are Python that does something."""
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return False
    return any(not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in body)


def test_there_is_no_commented_out_code() -> None:
    dead = [
        at(file, line) for file in PYTHON for line, text in comment_blocks(file) if is_code(text)
    ]
    assert not dead


def places(pattern: str, files: list[Path]) -> list[str]:
    found = re.compile(pattern)
    return [
        at(file, number)
        for file in files
        if file.exists()
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1)
        if found.search(line)
    ]


def test_nothing_is_left_for_later() -> None:
    words = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "Not" + "ImplementedError"))
    assert not places(rf"\b({words})\b", TEXT)


def test_no_path_of_one_machine() -> None:
    assert not places("/wo" + "rk/", TEXT)
    assert not places("/t" + "mp/", PRODUCT)


def calls(file: Path) -> Iterator[tuple[int, str, str]]:
    """Calls of `name` (owner "") and `owner.name`."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield node.lineno, node.value.id, node.attr
        elif isinstance(node, ast.Name):
            yield node.lineno, "", node.id


def test_threads_are_started_where_the_map_says() -> None:
    elsewhere = [
        at(file, line)
        for file in PRODUCT
        if file.name not in ("machine.py", "loop.py")  # loop.py: of a stack on its own
        for line, _, name in calls(file)
        if name in ("Thread", "ThreadPoolExecutor", "start_new_thread")
    ]
    assert not elsewhere


def test_time_is_read_in_one_file() -> None:
    elsewhere = [
        at(file, line)
        for file in PRODUCT
        if file.name != "clock.py"
        for line, owner, name in calls(file)
        if owner in ("time", "datetime", "date") and name in CLOCKS | {"today"}
    ]
    assert not elsewhere
