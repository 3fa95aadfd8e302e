"""Which export holds for a path and for a file handle."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import limits
from appliance.exports import (
    AUTH_NONE,
    AUTH_SYS,
    Access,
    Export,
    ExportTable,
    Options,
    Severity,
    parse,
)
from appliance.exports.clients import EVERYBODY
from appliance.exports.options import FLAVORS
from appliance.vfs.access import SquashRules
from appliance.vfs.handles import export_id
from tests.unit.exports.exports_helpers import KnownHosts, address, table, told, warning

HERE = address("10.0.0.1")
THERE = address("10.0.0.2")


def found_path(exports: ExportTable, path: bytes, client: bytes = HERE) -> bytes | None:
    found = exports.find(path, client)
    return found.path if found else None


def test_the_longest_path_at_or_above_counts() -> None:
    exports = table("/srv *\n/srv/deep/er *\n")
    assert found_path(exports, b"/srv") == b"/srv"
    assert found_path(exports, b"/srv/other") == b"/srv"
    assert found_path(exports, b"/srv/deep") == b"/srv"
    assert found_path(exports, b"/srv/deep/er") == b"/srv/deep/er"
    assert found_path(exports, b"/srv/deep/er/and/more") == b"/srv/deep/er"


@pytest.mark.parametrize(
    "path",
    [b"/", b"/sr", b"/srvx", b"/other", b"", b"srv", b"/srv/../etc", b"/srv/./x", b"/srv\0"],
)
def test_what_is_not_below_an_export_is_not_exported(path: bytes) -> None:
    assert found_path(table("/srv *\n"), path) is None


def test_slashes_too_many_do_no_harm() -> None:
    assert found_path(table("/srv *\n"), b"//srv//x/") == b"/srv"


def test_a_client_that_the_longest_path_is_not_for_has_the_one_above() -> None:
    exports = table("/ *(ro)\n/home 10.0.0.1(rw)\n")
    assert found_path(exports, b"/home", HERE) == b"/home"
    assert found_path(exports, b"/home", THERE) == b"/"


def test_a_handle_names_its_export_by_the_crc_of_the_path() -> None:
    exports = table("/srv 10.0.0.1\n")
    number = zlib.crc32(b"/srv")
    assert export_id(b"/srv") == number
    found = exports.by_id(number, HERE)
    assert found is not None
    assert found.id == number
    assert exports.by_id(number, THERE) is None
    assert exports.by_id(number ^ 1, HERE) is None


def test_decisions_are_remembered_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPORT_DECISIONS_MAX", 8)
    exports = table("/srv *\n")
    first = exports.by_id(export_id(b"/srv"), HERE)
    assert exports.by_id(export_id(b"/srv"), HERE) is first
    for last_byte in range(100):
        assert exports.by_id(export_id(b"/srv"), bytes([10, 0, 0, last_byte])) is first
        assert len(exports._decided) <= 8


def test_made_up_handles_are_not_remembered() -> None:
    exports = table("/srv *\n")
    for number in range(100):
        assert exports.by_id(number, HERE) is None
    assert not exports._decided


def test_everything_is_the_root_for_everybody_with_all_rights() -> None:
    exports = ExportTable.everything(KnownHosts())
    found = exports.find(b"/any/where", address("198.51.100.77"))
    assert found is not None
    assert found.path == b"/"
    assert not found.options.secure
    for flavor in (AUTH_SYS, AUTH_NONE):
        assert found.options.access(flavor) == Access(
            read_only=False, squash=SquashRules(root_squash=False)
        )


def test_the_listing_has_the_names_as_written() -> None:
    exports = table("/a 10.0.0.0/8(rw) @lab *.example.org\n/b *\n/a trusty\n")
    assert exports.listing() == [
        (b"/a", ["10.0.0.0/8", "@lab", "*.example.org", "trusty"]),
        (b"/b", ["*"]),
    ]


def test_a_second_entry_for_the_same_client_is_ignored_and_said() -> None:
    text = "/a *(rw)\n/b *\n/a *(ro)\n"
    assert "/a is exported to * a second time: line 1 counts" in warning(text)
    found = table(text).find(b"/a", HERE)
    assert found is not None
    assert found.options.rules[0][1].read_only is False


def test_two_paths_that_handles_could_not_tell_apart_are_an_error() -> None:
    assert zlib.crc32(b"/nenodu") == zlib.crc32(b"/gebupahe")  # found by trying
    text = "/nenodu *\n/gebupahe *\n"
    [problem] = told(text, Severity.ERROR)
    assert "same CRC-32" in problem.text


def test_mountpoint_exports_only_what_is_mounted() -> None:
    text = "/disk *(mp)\n/part *(mountpoint=/disk)\n/other *(mp)\n"
    exports = table(text, mount_points={b"/", b"/disk"})
    assert [export.path for export in exports] == [b"/disk", b"/part"]
    problems, _ = parse(text, "e", resolver=KnownHosts(), mount_points={b"/disk"})
    assert [str(problem) for problem in problems] == [
        "warning: e:3: /other is not exported: nothing is mounted at /other"
    ]


def test_the_number_of_entries_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EXPORT_ENTRIES_MAX", 3)
    [problem] = told("/a 10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4\n", Severity.ERROR)
    assert "more than 3 entries" in problem.text


def test_the_length_of_a_path_is_limited() -> None:
    longest = "/" + "x" * (limits.PATH_BYTES_MAX - 1)
    assert not told(f"{longest} *\n", Severity.ERROR)
    assert told(f"{longest}x *\n", Severity.ERROR)


# Whatever a table says, the file that it prints says the same ----------------

_ids = st.integers(0, (1 << 32) - 2)
_paths = st.lists(
    st.binary(min_size=1, max_size=12).filter(
        lambda part: part not in (b".", b"..") and not {0, 0x2F} & set(part)
    ),
    max_size=4,
).map(lambda parts: b"/" + b"/".join(parts))


@st.composite
def _options(draw: st.DrawFn) -> Options:
    anonuid, anongid = draw(_ids), draw(_ids)
    flavors = draw(
        st.lists(st.sampled_from(sorted(set(FLAVORS.values()))), min_size=1, unique=True)
    )
    rules = []
    for flavor in flavors:
        squash = SquashRules(draw(st.booleans()), draw(st.booleans()), anonuid, anongid)
        rules.append((flavor, Access(draw(st.booleans()), squash)))
    return Options(
        tuple(rules),
        sync=draw(st.booleans()),
        secure=draw(st.booleans()),
        crossmnt=draw(st.booleans()),
        nohide=draw(st.booleans()),
        mountpoint=draw(st.none() | st.just(b"") | _paths),
    )


@given(st.lists(st.builds(Export, _paths, st.just(EVERYBODY), _options()), max_size=4))
def test_a_table_that_is_printed_and_read_is_the_same(exports: list[Export]) -> None:
    unique = list({export.path: export for export in exports}.values())
    before = ExportTable(unique, KnownHosts())
    problems, after = parse(str(before), resolver=KnownHosts())
    assert not [problem for problem in problems if problem.severity is Severity.ERROR]
    assert list(after) == list(before)
