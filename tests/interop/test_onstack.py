"""Unmodified programs on our stack, with Linux on the other side of the TAP: Debian's curl asks
Python's http.server here, and urllib here asks Python's http.server there."""

from __future__ import annotations

import hashlib
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.lab import HOST, SERVER, TOP, Namespace

pytestmark = pytest.mark.root

FILE = bytes(range(256)) * 120_000
DIGEST = hashlib.sha256(FILE).hexdigest()


class Program:
    """A program in the namespace, until the test is over."""

    def __init__(self, netns: Namespace, folder: Path, *words: str | Path) -> None:
        self._process = subprocess.Popen(
            netns.command(sys.executable, "-u", *words),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(TOP)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, words: str) -> None:
        """Until it has printed a line with these words."""
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 30)[0]:
            line = self._process.stdout.readline()
            assert line, "it has ended"
            if words in line:
                return
        raise AssertionError(f"it does not say {words!r}")

    def finish(self) -> str:
        """Until it ends well; what it still had to say."""
        said, _ = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, said
        return said

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()  # so that it does not stand in the way of others
            self._process.communicate()
            raise


Start = Callable[..., Program]


@pytest.fixture
def start(netns: Namespace, tmp_path: Path) -> Iterator[Start]:
    """Starts Python with these words in the namespace, in a folder with a file."""
    netns.ip("link del br0")  # here the TAP itself is the host's interface
    (tmp_path / "file").write_bytes(FILE)
    started: list[Program] = []

    def begin(*words: str | Path) -> Program:
        started.append(Program(netns, tmp_path, *words))
        return started[-1]

    yield begin
    for one in started:
        one.end()


ONSTACK = ("-m", "appliance.onstack", "--tap", "tap1", "--ip", SERVER)

HTTPS_SERVER = """
import http.server, ssl
server = http.server.ThreadingHTTPServer(("", 443), http.server.SimpleHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("both")
server.socket = context.wrap_socket(server.socket, server_side=True)
print("Serving", flush=True)
server.serve_forever()
"""

FETCH = """
import hashlib, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=30) as answer:
    print(hashlib.sha256(answer.read()).hexdigest())
try:
    urllib.request.urlopen("http://nas:9/", timeout=30)
except OSError as error:
    print(error)
"""


def test_curl_asks_http_server_on_our_stack(netns: Namespace, start: Start, tmp_path: Path) -> None:
    start(*ONSTACK, "-m", "http.server", "80").wait_for("Serving HTTP")
    for number in range(2):
        netns.run("curl", "-sSf", "-o", tmp_path / "got", f"http://{SERVER}/file")
        assert (tmp_path / "got").read_bytes() == FILE, number
    several = [f"http://{SERVER}/file"] * 4
    netns.run("curl", "-sSf", "--parallel", *several, "-o", "/dev/null")
    assert "404" in netns.run("curl", "-sS", f"http://{SERVER}/nothing")
    refused = netns.run("curl", "-sS", f"http://{SERVER}:81/", expect=7)
    assert "refused" in refused or "connect to server" in refused


def test_curl_asks_over_ipv6(netns: Namespace, start: Start, tmp_path: Path) -> None:
    words = ("-m", "appliance.onstack", "--tap", "tap1", "--ip", "fd00::5/64")
    start(*words, "-m", "http.server", "80", "--bind", "fd00::5").wait_for("Serving HTTP")
    url = "http://[fd00::5]/file"
    netns.run("curl", "-sSf", "--retry", "9", "--retry-all-errors", "-o", tmp_path / "got", url)
    assert (tmp_path / "got").read_bytes() == FILE


def test_curl_asks_over_tls(netns: Namespace, start: Start, tmp_path: Path) -> None:
    netns.run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=server", "-addext", f"subjectAltName=IP:{SERVER}",
        "-keyout", tmp_path / "key", "-out", tmp_path / "certificate",
    )  # fmt: skip
    both = (tmp_path / "certificate").read_bytes() + (tmp_path / "key").read_bytes()
    (tmp_path / "both").write_bytes(both)
    (tmp_path / "serve.py").write_text(HTTPS_SERVER)
    start(*ONSTACK, "serve.py").wait_for("Serving")
    netns.run(
        "curl", "-sSf", "--cacert", tmp_path / "certificate", "-o", tmp_path / "got",
        f"https://{SERVER}/file",
    )  # fmt: skip
    assert (tmp_path / "got").read_bytes() == FILE
    netns.run("curl", "-sSf", f"https://{SERVER}/file", expect=60)  # not to be trusted


def test_urllib_on_our_stack_asks_linux(netns: Namespace, start: Start, tmp_path: Path) -> None:
    (tmp_path / "fetch.py").write_text(FETCH)
    start("-m", "http.server", "8080").wait_for("Serving HTTP")
    fetch = start(*ONSTACK, "--name", f"nas={HOST}", "fetch.py", "http://nas:8080/file")
    said = fetch.finish().split("\n")
    assert said[0] == DIGEST
    assert "refused" in said[1]


def test_a_program_that_fails(netns: Namespace, start: Start, tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text("import sys\nsys.exit(7)\n")
    netns.run(sys.executable, *ONSTACK, tmp_path / "fail.py", expect=7)
    said = netns.run(sys.executable, "-m", "appliance.onstack", "--ip", "10.0.0.5", expect=2)
    assert "which program?" in said
