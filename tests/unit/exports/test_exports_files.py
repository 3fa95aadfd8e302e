"""Whole files: samples, reload, --check-exports, and the promise that nothing breaks the reader."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from appliance import limits
from appliance.exports import ExportsFile, Severity, broken, check, parse, read
from tests.unit.exports.exports_helpers import KnownHosts, address, table

TOP = Path(__file__).parents[3]

# Written in the manner of the sample in exports(5), with everything that occurs there.
SAMPLE = r"""
# A department: two servers, a lab, guests.
/               alpha(rw) beta(rw,no_root_squash)
/work           node*.cluster.example(rw)
/usr            *.cluster.example(ro) @admins(rw)
/home/eva       desk7(rw,all_squash,anonuid=1007,anongid=1007)
/pub            *(ro,insecure,all_squash)
/srv/wiki       -sync,rw alpha @admins @guests(ro)
/mirror         2001:db8:7:1::/64(rw) 192.0.2.0/24(rw)
/build          builder[0-9].cluster.example(rw)
"/old stuff"    192.168.4.0/255.255.252.0(ro,sec=sys,no_subtree_check) \
                192.168.9.9(rw,fsid=12)       # the archive's own machine
"""
HOSTS = KnownHosts(
    {
        "alpha": "10.1.0.1",
        "beta": "10.1.0.2",
        "desk7": "10.1.0.7",
        "node3.cluster.example": "10.1.0.33",
        "builder4.cluster.example": "10.1.0.44",
    }
)


@pytest.mark.parametrize(
    ("path", "who", "rights"),
    [
        (b"/", "10.1.0.1", "rw root_squash"),
        (b"/", "10.1.0.2", "rw no_root_squash"),
        (b"/", "10.1.0.3", None),
        (b"/work", "10.1.0.33", "rw root_squash"),
        (b"/work", "10.1.0.44", None),
        (b"/usr/share", "10.1.0.33", "ro root_squash"),
        (b"/home/eva", "10.1.0.7", "rw all_squash 1007:1007"),
        (b"/pub", "198.51.100.1", "ro all_squash 65534:65534"),
        (b"/srv/wiki", "10.1.0.1", "rw root_squash"),
        (b"/mirror", "2001:db8:7:1::9", "rw root_squash"),
        (b"/mirror", "192.0.2.200", "rw root_squash"),
        (b"/build", "10.1.0.44", "rw root_squash"),
        (b"/old stuff/x", "192.168.7.1", "ro root_squash"),
        (b"/old stuff", "192.168.9.9", "rw root_squash"),
    ],
)
def test_the_sample_says_who_may_do_what(path: bytes, who: str, rights: str | None) -> None:
    found = table(SAMPLE, HOSTS).find(path, address(who))
    access = found.options.access(1) if found else None
    said = None
    if access:
        rules = access.squash
        squash = "root_squash" if rules.root_squash else "no_root_squash"
        if rules.all_squash:
            squash = f"all_squash {rules.anonuid}:{rules.anongid}"
        said = f"{'ro' if access.read_only else 'rw'} {squash}"
    assert said == rights


def test_the_sample_that_we_ship_has_no_problems() -> None:
    problems, exports = read(TOP / "exports.conf", resolver=KnownHosts())
    assert not problems
    assert exports.listing()


def test_every_example_in_the_comments_of_the_sample_is_right() -> None:
    text = (TOP / "exports.conf").read_text()
    examples = "\n".join(line[4:] for line in text.splitlines() if line.startswith("#   /"))
    problems, exports = parse(examples, resolver=KnownHosts({"trusty.example.org": "10.0.0.9"}))
    assert not [str(p) for p in problems if p.severity is not Severity.NOTE]
    assert len(list(exports)) >= 5


def test_a_reload_puts_a_new_table_in_place(tmp_path: Path) -> None:
    path = tmp_path / "exports"
    path.write_text("/a *\n")
    file = ExportsFile(path, KnownHosts(), {b"/"})
    assert file.load() == []
    first = file.table
    assert first.listing() == [(b"/a", ["*"])]
    path.write_text("/b *\n")
    assert file.load() == []
    assert file.table.listing() == [(b"/b", ["*"])]
    assert first.listing() == [(b"/a", ["*"])]


@pytest.mark.parametrize("content", [b"/b *(rwx)\n", b"nonsense\n", None])
def test_a_broken_file_leaves_the_table_as_it_was(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "exports"
    path.write_text("/a *\n")
    file = ExportsFile(path, KnownHosts(), {b"/"})
    file.load()
    kept = file.table
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    problems = file.load()
    assert broken(problems)
    assert str(path) in str(problems[0])
    assert file.table is kept


def test_a_warning_does_not_keep_a_new_table_out(tmp_path: Path) -> None:
    path = tmp_path / "exports"
    path.write_text("/a @group *\n")
    file = ExportsFile(path, KnownHosts(), {b"/"})
    assert [problem.severity for problem in file.load()] == [Severity.WARNING]
    assert file.table.listing() == [(b"/a", ["@group", "*"])]


def test_without_a_file_everything_is_exported() -> None:
    file = ExportsFile(None, KnownHosts(), {b"/"})
    assert file.load() == []
    assert file.table.listing() == [(b"/", ["*"])]


def checked(path: Path) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return check(path, out, err, KnownHosts()), out.getvalue(), err.getvalue()


def test_check_prints_the_table_as_an_exports_file(tmp_path: Path) -> None:
    path = tmp_path / "exports"
    path.write_text("/a 10.0.0.1(rw)\n")
    code, out, err = checked(path)
    assert (code, err) == (0, "")
    assert out.startswith("/a 10.0.0.1(sync,secure,")
    assert list(table(out)) == list(table("/a 10.0.0.1(rw)\n"))


def test_check_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    path = tmp_path / "exports"
    path.write_text("/a *(rw)\n/b *(root_sqash)\n")
    code, out, err = checked(path)
    assert (code, out) == (1, "")
    assert err == (
        f'error: {path}:2: unknown option "root_sqash"\nhint: did you mean root_squash?\n'
    )


def test_check_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    code, _, err = checked(tmp_path / "none")
    assert code == 1
    assert "No such file" in err


def test_a_file_that_is_too_long_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "EXPORTS_BYTES_MAX", 8)
    (tmp_path / "exports").write_text("/aaaaaa *\n")
    problems, exports = read(tmp_path / "exports", resolver=KnownHosts())
    assert "longer than 8 bytes" in str(problems[0])
    assert not list(exports)


def test_bytes_that_are_no_text_are_kept(tmp_path: Path) -> None:
    (tmp_path / "exports").write_bytes(b"/\xff\xfe *\n")
    problems, exports = read(tmp_path / "exports", resolver=KnownHosts())
    assert not problems
    assert [export.path for export in exports] == [b"/\xff\xfe"]
    assert "\\377\\376" in str(exports)


_PIECES = st.sampled_from(
    ["/", "/a", " ", "\t", "\n", "\\\n", '"', "\\040", "\\", "#", "*", "(", ")", ",", "-", "=",
     "rw", "ro", "sec=", "sys", ":", "krb5", "anonuid=", "65534", "mp", "fsid=", "10.0.0.1", "/24",
     "/255.255.255.0", "host", "@group", "gss/krb5", "[a-z]", "[", "?", "2001:db8::", "é", "\udcff",
     "\0", "\r\n", "..", "xprtsec=", "refer="]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=30).map("".join) | st.text(max_size=60))
@example('/ "*(' + "sec=" * 10)
def test_no_text_breaks_the_reader(text: str) -> None:
    problems, exports = parse(text, resolver=KnownHosts())
    for problem in problems:
        assert str(problem).isprintable() or "\n" in str(problem)
    again, reread = parse(str(exports), resolver=KnownHosts())
    assert not broken(again)
    assert list(reread) == list(exports)
