"""Who an entry of exports(5) is for."""

from __future__ import annotations

import pytest

from appliance.exports import Severity
from tests.unit.exports.exports_helpers import KnownHosts, address, error, table, told, warning

HOSTS = KnownHosts(
    {"trusty": "10.1.1.7", "pc12.lab.example.org": "10.1.1.12", "liar.example.org": "10.9.9.9"},
    reverse={
        "10.1.1.12": "pc12.lab.example.org",
        "10.1.1.13": "liar.example.org",  # whose own address is another one
    },
)


def lets_in(client: str, who: str) -> bool:
    return table(f"/a {client}\n", HOSTS).find(b"/a", address(who)) is not None


@pytest.mark.parametrize(
    ("client", "who", "yes"),
    [
        ("10.1.1.7", "10.1.1.7", True),
        ("10.1.1.7", "10.1.1.8", False),
        ("trusty", "10.1.1.7", True),
        ("trusty", "10.1.1.12", False),
        ("10.1.0.0/16", "10.1.255.255", True),
        ("10.1.0.0/16", "10.2.0.0", False),
        ("10.1.4.0/255.255.252.0", "10.1.7.255", True),
        ("10.1.4.0/255.255.252.0", "10.1.8.0", False),
        ("10.1.4.0/22", "10.1.7.255", True),
        ("10.1.1.6/31", "10.1.1.7", True),
        ("10.1.1.6/31", "10.1.1.8", False),
        ("0.0.0.0/0", "198.51.100.1", True),
        ("10.1.1.7/32", "10.1.1.6", False),
        ("*", "198.51.100.1", True),
        ("*", "2001:db8::1", True),
        ("2001:db8::1", "2001:db8::1", True),
        ("2001:db8:1::/48", "2001:db8:1:ffff::9", True),
        ("2001:db8:1::/48", "2001:db8:2::9", False),
        ("::/0", "10.1.1.7", False),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("10.1.1.7", "::ffff:10.1.1.7", True),
        ("*.lab.example.org", "10.1.1.12", True),
        ("*.example.org", "10.1.1.12", True),
        ("pc[0-9]?.lab.example.org", "10.1.1.12", True),
        ("pc[^1]?.lab.example.org", "10.1.1.12", False),
        ("PC??.LAB.example.org", "10.1.1.12", True),
        ("lab.example.*", "10.1.1.12", False),
        ("*.lab.example.org", "10.1.1.99", False),
        ("*.example.org", "10.1.1.13", False),
        ("@trusted", "10.1.1.7", False),
        ("gss/krb5", "10.1.1.7", False),
        ("unheard.example.org", "10.1.1.7", False),
    ],
)
def test_an_entry_lets_in_whom_it_names(client: str, who: str, yes: bool) -> None:
    assert lets_in(client, who) is yes


@pytest.mark.parametrize(
    ("client", "complaint"),
    [
        ("10.0.0.0/33", "a length from 0 to 32"),
        ("10.0.0.0/255.0.255.0", "not a netmask"),
        ("10.0.0.0/0.0.0.255", "not a netmask"),
        ("10.0.0.0/", "not a netmask"),
        ("trusty/24", "is not an IP address"),
        ("2001:db8::/129", "a length from 0 to 128"),
        ("2001:db8::/255.255.0.0", "not a netmask"),
        ("[2001:db8::1]", "without brackets"),
        ("10.0.0.300", "not an IP address"),
        ("10.0.0", "not an IP address"),
        ("under,score", "not a host name"),
        ("pc[0-9.example.org", "neither a host name nor a pattern"),
    ],
)
def test_what_is_not_a_client_is_an_error(client: str, complaint: str) -> None:
    assert complaint in error(f"/a {client}(rw)\n")


@pytest.mark.parametrize(
    ("client", "said"),
    [
        ("@trusted", "there are no netgroups: @trusted matches nobody"),
        ("gss/krb5i", "there is no RPCSEC_GSS"),
        ("10.0.0.5/24", "taken as 10.0.0.0/24"),
        ("192.168.1.*", "compared with names, not with addresses"),
        ("nohost", 'host "nohost" is not known'),
    ],
)
def test_what_is_probably_not_meant_is_warned_about(client: str, said: str) -> None:
    assert said in warning(f"/a {client}(rw)\n")


def test_the_most_specific_entry_counts_wherever_it_stands() -> None:
    entries = ["*", "*.lab.example.org", "10.1.1.0/24", "pc12.lab.example.org"]
    for count in range(1, len(entries) + 1):
        for known in (entries[:count], entries[:count][::-1]):
            found = table(f"/a {' '.join(known)}\n", HOSTS).find(b"/a", address("10.1.1.12"))
            assert found is not None
            assert found.client.text == entries[count - 1]


def test_of_two_entries_of_one_kind_the_first_counts() -> None:
    found = table("/a 10.0.0.0/8(rw) 10.1.0.0/16(ro)\n").find(b"/a", address("10.1.1.1"))
    assert found is not None
    assert found.client.text == "10.0.0.0/8"


def test_names_are_asked_for_once_when_the_file_is_read() -> None:
    hosts = KnownHosts({"trusty": "10.1.1.7"})
    exports = table("/a trusty\n", hosts)
    asked = hosts.questions
    for _ in range(5):
        assert exports.find(b"/a", address("10.1.1.7"))
        assert not exports.find(b"/a", address("10.1.1.8"))
    assert hosts.questions == asked


def test_a_wildcard_asks_for_the_name_of_a_client_once() -> None:
    hosts = KnownHosts({"pc1.example.org": "10.1.1.7"})
    exports = table("/a *.example.org\n", hosts)
    exports.find(b"/a", address("10.1.1.7"))
    asked = hosts.questions
    assert asked > 0
    for _ in range(5):
        assert exports.find(b"/a", address("10.1.1.7"))
    assert hosts.questions == asked


def test_a_host_that_is_not_known_is_only_a_warning() -> None:
    assert not told("/a nohost(rw)\n", Severity.ERROR)
