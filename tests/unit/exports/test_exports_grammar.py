"""The grammar of exports(5): words, quotes, escapes, comments, joined lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.exports import parse
from appliance.exports.grammar import normal_path, quote, unquote
from tests.unit.exports.exports_helpers import error, only, table, warning


def paths(text: str) -> list[bytes]:
    return [export.path for export in table(text)]


def test_one_line_has_several_clients_with_options_of_their_own() -> None:
    exports = list(table("/srv 10.0.0.1(rw) 10.0.0.2 10.0.0.3(rw,async)\n"))
    assert [export.client.text for export in exports] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    assert [export.options.rules[0][1].read_only for export in exports] == [False, True, False]
    assert [export.options.sync for export in exports] == [True, True, False]


@pytest.mark.parametrize(
    "text",
    [
        "/a *\n/b *\n",
        "# first\n\n   \n/a\t*   # why\n\t/b *",
        "/a \\\n   *\n/b \\\n*\n",
        "/a *\r\n/b *\r\n",
    ],
)
def test_blanks_comments_and_joined_lines_change_nothing(text: str) -> None:
    assert paths(text) == [b"/a", b"/b"]


@pytest.mark.parametrize(
    ("word", "path"),
    [
        ('"/with blank"', b"/with blank"),
        (r"/with\040blank", b"/with blank"),
        ('/half" "quoted', b"/half quoted"),
        (r"/caf\303\251", "/café".encode()),
        ("/café", "/café".encode()),
        (r"/back\slash", rb"/back\slash"),
        ("/a#b", b"/a#b"),
        ("//twice///over/", b"/twice/over"),
        ("/", b"/"),
    ],
)
def test_a_path_may_hold_any_byte(word: str, path: bytes) -> None:
    assert paths(f"{word} *\n") == [path]


def test_problems_carry_the_physical_line() -> None:
    text = "# one\n/a \\\n  *(rw)\n/b *(bogus_thing)\n"
    assert error(text).startswith("error: exports.conf:4: unknown option")


def test_a_comment_that_swallows_a_line_is_warned_about() -> None:
    assert "exports.conf:1: this comment ends in a backslash" in warning("# old \\\n/a *\n/b *\n")
    assert paths("# old \\\n/a *\n/b *\n") == [b"/b"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('/a "10.0.0.1\n', "no closing"),
        ("srv *(rw)\n", "absolute path"),
        ("-rw *\n", "absolute path"),
        ("/a/../b *\n", "not a plain path"),
        (r"/a\000b *" "\n", "not a plain path"),
        ("/a *(rw, sync)\n", "without blanks"),
        ("/a *(rw\n", "bad option list"),
        ("/a *rw)\n", "bad option list"),
        ("/a 10.0.0.1(rw)10.0.0.2(ro)\n", "a blank between two clients"),
        ("/a *((rw))\n", "after the option list"),
    ],
)
def test_a_line_that_cannot_be_understood_is_an_error(text: str, complaint: str) -> None:
    assert complaint in error(text)


def test_a_wrong_line_is_left_out_whole_and_the_others_stay() -> None:
    text = "/a 10.0.0.1(rw) 10.0.0.2(rwx)\n/b *\n"
    assert error(text).endswith("hint: did you mean rw?")
    _, found = parse(text)
    assert [export.path for export in found] == [b"/b"]


def test_the_space_trap_is_warned_about() -> None:
    said = warning("/a 10.0.0.1 (rw)\n")
    assert "(rw) after a blank is for everybody" in said
    assert "hint: without the blank: host(rw)" in said
    trusted, world = table("/a 10.0.0.1 (rw)\n")
    assert trusted.options.rules[0][1].read_only
    assert not world.options.rules[0][1].read_only
    assert world.client.text == "*"


def test_options_without_any_client_are_for_everybody() -> None:
    assert "(rw) without a client is for everybody" in warning("/a (rw)\n")
    assert only("/a (rw)\n").client.text == "*"


def test_a_path_without_clients_is_for_everybody() -> None:
    assert "/a has no clients" in warning("/a\n")
    assert only("/a -async\n").options.sync is False


@given(st.binary(max_size=40))
def test_quote_and_unquote_are_inverse(value: bytes) -> None:
    word = quote(value)
    assert unquote(word) == value
    assert not any(character.isspace() for character in word)


@given(st.binary(max_size=40))
def test_a_normal_path_is_normal(value: bytes) -> None:
    path = normal_path(value)
    if path is not None:
        assert path.startswith(b"/")
        assert b"//" not in path
        assert normal_path(path) == path
        assert not {b".", b".."} & set(path.split(b"/"))
