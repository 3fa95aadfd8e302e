"""The options of exports(5): which this server obeys, which it knows and has no use for.

Four things may differ between the security flavors of one export (see "sec="): read-only, the two
squash rules and, through them, who a caller becomes. They are an `Access`, one for each flavor.
The defaults are those of exportfs(8).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from appliance.exports.grammar import normal_path, quote
from appliance.exports.problems import Report
from appliance.vfs.access import NOBODY, SquashRules

AUTH_NONE: Final = 0
AUTH_SYS: Final = 1

FLAVORS: Final = {
    "sys": AUTH_SYS,
    "unix": AUTH_SYS,
    "none": AUTH_NONE,
    "null": AUTH_NONE,
    "krb5": 390003,  # RFC 2623 section 2.3.1: the pseudo-flavors of Kerberos
    "krb5i": 390004,
    "krb5p": 390005,
}
SERVED: Final = (AUTH_SYS, AUTH_NONE)
RESERVED_PORTS: Final = 1024
"""Ports below are given to the superuser of the client's host only."""


@dataclass(frozen=True, slots=True)
class Access:
    """What callers of one security flavor may do, and who they become."""

    read_only: bool = True
    squash: SquashRules = field(default_factory=SquashRules)


@dataclass(frozen=True, slots=True)
class Options:
    """How one path is exported to one client.

    `rules`: the flavors that are let in, the preferred one first, each with its Access. Without a
    "sec=" these are AUTH_SYS and, as in the Linux kernel, AUTH_NONE (a caller without a name
    becomes the anonymous user whatever the squash rules say).
    """

    rules: tuple[tuple[int, Access], ...] = ((AUTH_SYS, Access()), (AUTH_NONE, Access()))
    sync: bool = True
    secure: bool = True
    """Calls have to come from a port below 1024."""
    crossmnt: bool = False
    """File systems mounted below are part of this export."""
    nohide: bool = False
    """The file system at this path is seen by clients of the export above."""
    mountpoint: bytes | None = None
    """Exported only while a file system is mounted at this path; empty: at the exported path."""

    def access(self, flavor: int) -> Access | None:
        """What a call with this flavor may do; None: nothing (AUTH_TOOWEAK)."""
        for known, access in self.rules:
            if known == flavor:
                return access
        return None

    def admits(self, port: int) -> bool:
        """Whether calls may come from this port of the client."""
        return not self.secure or port < RESERVED_PORTS

    @property
    def flavors(self) -> tuple[int, ...]:
        """The flavors to offer to a client, the preferred one first."""
        return tuple(flavor for flavor, _ in self.rules if flavor in SERVED)

    def __str__(self) -> str:
        """All of them, as an option list in which nothing is left to a default."""
        sections = _sections(self.rules)
        anonymous = self.rules[0][1].squash
        words = [
            "sync" if self.sync else "async",
            "secure" if self.secure else "insecure",
            "crossmnt" if self.crossmnt else "nocrossmnt",
            "nohide" if self.nohide else "hide",
            f"anonuid={anonymous.anonuid}",
            f"anongid={anonymous.anongid}",
        ]
        if self.mountpoint is not None:
            words.append("mp" if not self.mountpoint else f"mp={quote(self.mountpoint)}")
        return ",".join(words + sections)


def _sections(rules: tuple[tuple[int, Access], ...]) -> list[str]:
    """ "sec=" and the options that depend on it; neighbours with the same options share one."""
    sections: list[tuple[list[str], Access]] = []
    for flavor, access in rules:
        name = next(name for name, number in FLAVORS.items() if number == flavor)
        if sections and sections[-1][1] == access:
            sections[-1][0].append(name)
        else:
            sections.append(([name], access))
    return [
        f"sec={':'.join(names)}"
        + (",ro" if access.read_only else ",rw")
        + (",root_squash" if access.squash.root_squash else ",no_root_squash")
        + (",all_squash" if access.squash.all_squash else ",no_all_squash")
        for names, access in sections
    ]


# Options that are there or not there -----------------------------------------

_BY_FLAVOR: Final = {
    "ro": ("read_only", True),
    "rw": ("read_only", False),
    "root_squash": ("root_squash", True),
    "no_root_squash": ("root_squash", False),
    "all_squash": ("all_squash", True),
    "no_all_squash": ("all_squash", False),
}
_FOR_ALL: Final = {
    "sync": ("sync", True),
    "async": ("sync", False),
    "secure": ("secure", True),
    "insecure": ("secure", False),
    "crossmnt": ("crossmnt", True),
    "nocrossmnt": ("crossmnt", False),
    "nohide": ("nohide", True),
    "hide": ("nohide", False),
}

# Options without effect, and why ---------------------------------------------

_NO_SUBTREES: Final = "a handle is checked against its export in every call"
_NO_GATHERING: Final = "writes are gathered by group commit, without a delay"
_NO_LABELS: Final = "there are no security labels"
_NO_PNFS: Final = "there is no pNFS"
_NO_ACL: Final = "access control lists are always obeyed, and clients are not shown them"
_NO_NLM: Final = "there is no lock manager"
_IGNORED_FLAGS: Final = {
    "subtree_check": _NO_SUBTREES,
    "no_subtree_check": _NO_SUBTREES,
    "wdelay": _NO_GATHERING,
    "no_wdelay": _NO_GATHERING,
    "security_label": _NO_LABELS,
    "no_security_label": _NO_LABELS,
    "pnfs": _NO_PNFS,
    "no_pnfs": _NO_PNFS,
    "acl": _NO_ACL,
    "no_acl": _NO_ACL,
    "auth_nlm": _NO_NLM,
    "no_auth_nlm": _NO_NLM,
    "secure_locks": _NO_NLM,
    "insecure_locks": _NO_NLM,
    "nordirplus": "READDIRPLUS is always served",
    "sign_fh": "handles are not signed",
}
_IGNORED_VALUES: Final = {
    "refer": "there are no referrals",
    "replicas": "there are no referrals",
    "reexport": "nothing is re-exported",
}
_FSID: Final = re.compile(r"root|\d{1,10}|[^0-9A-Fa-f]*(?:[0-9A-Fa-f][^0-9A-Fa-f]*){32}")


class OptionList:
    """Reads one option list, item by item, on top of what was valid before it.

    As in exportfs, an option that may differ by flavor counts for the flavors of the "sec=" before
    it; without one before it, for all. Unlike there, a "sec=" replaces the flavors that the line's
    default options named, so that what stands at the client is what the client gets.
    """

    def __init__(self, before: Options, report: Report) -> None:
        self.options = before
        self._report = report
        self._common = before.rules[0][1]
        self._active: tuple[int, ...] = ()
        self._own_flavors = False
        self._said: dict[str, str] = {}  # setting -> the word that made it, to find contradictions
        self._valued: dict[str, Callable[[str], None]] = {
            "sec": self._sec,
            "anonuid": lambda value: self._anonymous("anonuid", value),
            "anongid": lambda value: self._anonymous("anongid", value),
            "fsid": self._fsid,
            "xprtsec": self._xprtsec,
        }

    def read(self, words: Iterable[str]) -> Options:
        """All of `words`; what cannot be obeyed is reported."""
        for word in words:
            self._read_one(word)
        return self.options

    def _read_one(self, word: str) -> None:
        name, equals, value = word.partition("=")
        if name in ("mountpoint", "mp"):
            self._mountpoint(value)
        elif name in self._valued or name in _IGNORED_VALUES:
            if not value:
                self._report.error(f'option "{name}" needs a value: {name}=...')
            elif name in self._valued:
                self._valued[name](value)
            else:
                self._report.note(f'option "{name}" has no effect: {_IGNORED_VALUES[name]}')
        elif name not in _BY_FLAVOR and name not in _FOR_ALL and name not in _IGNORED_FLAGS:
            self._unknown(name)
        elif equals:
            self._report.error(f'option "{name}" takes no value')
        elif name in _IGNORED_FLAGS:
            self._report.note(f'option "{name}" has no effect: {_IGNORED_FLAGS[name]}')
        else:
            self._flag(name)

    def _unknown(self, name: str) -> None:
        known = [*_BY_FLAVOR, *_FOR_ALL, *_IGNORED_FLAGS, *_IGNORED_VALUES, *self._valued]
        self._report.error(f'unknown option "{name}"', _closest(name, [*known, "mountpoint"]))

    def _flag(self, word: str) -> None:
        setting, value = _BY_FLAVOR.get(word) or _FOR_ALL[word]
        earlier = self._said.setdefault(setting, word)
        if earlier != word:
            self._report.warning(f'"{earlier}" and "{word}" contradict each other: {word} counts')
            self._said[setting] = word
        if word in _FOR_ALL:
            change: dict[str, Any] = {setting: value}
            self.options = dataclasses.replace(self.options, **change)
        else:
            self._set_access(self._active, setting, value)

    def _set_access(self, only: tuple[int, ...], setting: str, value: bool | int) -> None:
        """Change one setting of the flavors `only`; of all (and those to come) when it is empty."""
        if not only:
            self._common = _changed(self._common, setting, value)
        rules = [
            (flavor, _changed(access, setting, value) if not only or flavor in only else access)
            for flavor, access in self.options.rules
        ]
        self.options = dataclasses.replace(self.options, rules=tuple(rules))

    def _anonymous(self, name: str, value: str) -> None:
        """ "anonuid=-2" is an old way to write 2^32 - 2; -1 means "no change" in chown(2)."""
        if not re.fullmatch(r"-?\d{1,10}", value) or not -(1 << 31) <= int(value) < (1 << 32):
            self._report.error(f'option "{name}" needs a number, not "{value}"')
        elif int(value) & 0xFFFFFFFF == 0xFFFFFFFF:
            self._report.error(f"{name}={value} is nobody's number", f"{name}={NOBODY} is usual")
        else:
            self._set_access((), name, int(value) & 0xFFFFFFFF)

    def _sec(self, value: str) -> None:
        names = value.split(":")
        for name in names:
            if name not in FLAVORS:
                self._report.error(f'unknown security flavor "{name}"', _closest(name, FLAVORS))
                return
        flavors = tuple(dict.fromkeys(FLAVORS[name] for name in names))
        rules = dict(self.options.rules) if self._own_flavors else {}
        for flavor in flavors:
            rules.setdefault(flavor, self._common)
        self.options = dataclasses.replace(self.options, rules=tuple(rules.items()))
        self._own_flavors = True
        self._active = flavors
        self._said = {s: w for s, w in self._said.items() if w in _FOR_ALL}
        if not any(flavor in SERVED for flavor in flavors):
            self._report.warning(
                f"sec={value} needs RPCSEC_GSS, which is not served: nobody gets in this way",
                "sec=sys trusts the client to say who its users are",
            )

    def _mountpoint(self, value: str) -> None:
        path = normal_path(value.encode("utf-8", "surrogateescape")) if value else b""
        if path is None:
            self._report.error(f'"{value}" is not an absolute path', "mountpoint=/path")
        else:
            self.options = dataclasses.replace(self.options, mountpoint=path)

    def _fsid(self, value: str) -> None:
        if _FSID.fullmatch(value):
            self._report.note('option "fsid" has no effect: file systems know who they are')
        else:
            self._report.error(f'"{value}" is not an fsid', "a number, root, or a UUID")

    def _xprtsec(self, value: str) -> None:
        policies = value.split(":")
        if any(policy not in ("none", "tls", "mtls") for policy in policies):
            self._report.error(f'unknown transport security "{value}"', "none, tls or mtls")
        elif "none" not in policies:
            self._report.warning(f"xprtsec={value} has no effect: there is no RPC over TLS")
        else:
            self._report.note('option "xprtsec" has no effect: there is no RPC over TLS')


def _changed(access: Access, setting: str, value: bool | int) -> Access:
    """`access` with one setting changed, its own or one of its squash rules."""
    change: dict[str, Any] = {setting: value}
    if setting == "read_only":
        return dataclasses.replace(access, **change)
    return dataclasses.replace(access, squash=dataclasses.replace(access.squash, **change))


def _closest(word: str, known: Collection[str]) -> str:
    """A hint at the word that was perhaps meant."""
    import difflib  # only a mistake pays for it

    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else ""
