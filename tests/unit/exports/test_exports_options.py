"""Every option of exports(5): obeyed, or named as having no effect, or an error with a hint."""

from __future__ import annotations

import pytest

from appliance.exports import AUTH_NONE, AUTH_SYS, Access, Options, Severity
from appliance.vfs.access import SquashRules
from tests.unit.exports.exports_helpers import error, only, table, told, warning

KRB5 = 390003


def options(text: str) -> Options:
    return only(f"/a *({text})\n").options


def access(text: str) -> Access:
    found = options(text).access(AUTH_SYS)
    assert found is not None
    return found


def test_the_defaults_are_those_of_exportfs() -> None:
    assert only("/a *\n").options == options("") == Options()
    assert Options().sync
    assert Options().secure
    assert access("") == Access(
        read_only=True,
        squash=SquashRules(root_squash=True, all_squash=False, anonuid=65534, anongid=65534),
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("rw", Access(read_only=False)),
        ("ro", Access()),
        ("no_root_squash", Access(squash=SquashRules(root_squash=False))),
        ("all_squash", Access(squash=SquashRules(all_squash=True))),
        (
            "all_squash,anonuid=150,anongid=100",
            Access(squash=SquashRules(all_squash=True, anonuid=150, anongid=100)),
        ),
        ("anonuid=-2", Access(squash=SquashRules(anonuid=4294967294))),
        ("rw,no_root_squash,no_all_squash", Access(False, SquashRules(root_squash=False))),
    ],
)
def test_what_callers_may_do(text: str, wanted: Access) -> None:
    assert access(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("async", Options(sync=False)),
        ("insecure", Options(secure=False)),
        ("crossmnt", Options(crossmnt=True)),
        ("nohide", Options(nohide=True)),
        ("sync,secure,nocrossmnt,hide", Options()),
        ("mountpoint", Options(mountpoint=b"")),
        ("mp=/disk", Options(mountpoint=b"/disk")),
        (r"mp=/with\040blank\054comma", Options(mountpoint=b"/with blank,comma")),
        ('mp="/with blank"', Options(mountpoint=b"/with blank")),
    ],
)
def test_what_holds_for_the_whole_export(text: str, wanted: Options) -> None:
    assert options(text) == wanted


def test_default_options_hold_for_the_clients_after_them() -> None:
    text = "/a 10.0.0.1 -rw,async 10.0.0.2 10.0.0.3(ro) -sync 10.0.0.4\n"
    found = [(e.options.rules[0][1].read_only, e.options.sync) for e in table(text)]
    assert found == [(True, True), (False, False), (True, False), (False, True)]


def test_default_options_end_with_the_line() -> None:
    first, second = table("/a -rw *\n/b *\n")
    assert not first.options.rules[0][1].read_only
    assert second.options.rules[0][1].read_only


def test_a_flavor_decides_what_its_callers_may_do() -> None:
    found = options("sec=krb5,rw,sec=sys,ro,all_squash")
    assert found.access(KRB5) == Access(read_only=False)
    assert found.access(AUTH_SYS) == Access(squash=SquashRules(all_squash=True))
    assert found.access(AUTH_NONE) is None
    assert found.flavors == (AUTH_SYS,)


def test_options_before_the_first_sec_hold_for_every_flavor() -> None:
    found = options("rw,sec=krb5:sys,sec=none,ro")
    assert [rule.read_only for _, rule in found.rules] == [False, False, True]


def test_sec_at_a_client_replaces_the_flavors_of_the_defaults() -> None:
    export = only("/a -sec=krb5,rw *(sec=sys)\n")
    assert [flavor for flavor, _ in export.options.rules] == [AUTH_SYS]


def test_without_sec_a_caller_may_have_no_name() -> None:
    assert Options().flavors == (AUTH_SYS, AUTH_NONE)
    assert options("sec=sys").access(AUTH_NONE) is None


def test_kerberos_alone_lets_nobody_in_and_is_warned_about() -> None:
    assert "needs RPCSEC_GSS" in warning("/a *(sec=krb5p)\n")
    found = options("sec=krb5p")
    assert found.flavors == ()
    assert found.access(AUTH_SYS) is None


NO_EFFECT = [
    "subtree_check", "no_subtree_check", "wdelay", "no_wdelay", "pnfs", "no_pnfs",
    "security_label", "no_security_label", "acl", "no_acl", "auth_nlm", "no_auth_nlm",
    "secure_locks", "insecure_locks", "nordirplus", "sign_fh", "fsid=0", "fsid=root", "fsid=7",
    "fsid=8c6c9a9b-0f6b-4b35-bd9e-0e4f4f0b0c0d", "refer=/x@10.0.0.9+10.0.0.8:/y@10.0.0.7",
    "replicas=/x@10.0.0.9", "reexport=auto-fsidnum", "xprtsec=none:tls",
]  # fmt: skip


@pytest.mark.parametrize("word", NO_EFFECT)
def test_an_option_without_effect_is_named(word: str) -> None:
    [note] = told(f"/a *({word})\n", Severity.NOTE)
    assert f'option "{word.partition("=")[0]}" has no effect: ' in note.text
    assert options(word) == Options()


def test_transport_security_that_is_demanded_is_a_warning() -> None:
    assert "there is no RPC over TLS" in warning("/a *(xprtsec=mtls)\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("rw_squash", 'unknown option "rw_squash"\nhint: did you mean root_squash?'),
        ("root_sqush", 'unknown option "root_sqush"\nhint: did you mean root_squash?'),
        ("insecur", "did you mean insecure?"),
        ("qqq", 'unknown option "qqq"'),
        ("ro=1", 'option "ro" takes no value'),
        ("anonuid", 'option "anonuid" needs a value'),
        ("anonuid=bob", "needs a number"),
        ("anonuid=4294967296", "needs a number"),
        ("anongid=-1", "nobody's number"),
        ("anonuid=4294967295", "nobody's number"),
        ("sec=kerberos", 'unknown security flavor "kerberos"'),
        ("sec=syss", "did you mean sys?"),
        ("sec=sys:", "unknown security flavor"),
        ("fsid=xyz", "not an fsid"),
        ("mp=relative", "not an absolute path"),
        ("xprtsec=ssl", "unknown transport security"),
        ("refer=", "needs a value"),
    ],
)
def test_what_is_not_an_option_is_an_error(text: str, complaint: str) -> None:
    assert complaint in error(f"/a *({text})\n")


def test_a_contradiction_is_warned_about_and_the_last_word_counts() -> None:
    assert '"rw" and "ro" contradict each other: ro counts' in warning("/a *(rw,sync,ro)\n")
    assert access("rw,ro").read_only
    assert "sync" in warning("/a *(sync,async)\n")


def test_a_client_may_contradict_the_defaults_and_a_flavor_another() -> None:
    assert not told("/a -ro *(rw)\n", Severity.WARNING)
    assert not told("/a *(sec=sys,rw,sec=none,ro)\n", Severity.WARNING)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rw,no_root_squash,async,insecure,crossmnt,nohide,anonuid=7,anongid=8,mp=/x",
        "sec=krb5:sys,rw,sec=none,ro,all_squash",
        "sec=krb5,rw,sec=sys,ro",
    ],
)
def test_what_is_printed_says_the_same(text: str) -> None:
    assert options(str(options(text))) == options(text)
