"""The control socket: requests and replies, hostile clients, whose socket it is; and rumpctl."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from appliance import limits
from appliance.control import ControlError, ControlServer, SnapshotVerbs, Verb
from appliance.ctl import main as rumpctl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, Snapshot, Snapshots
from appliance.vfs.memory import MemoryFileSystem
from tests.sim.clock import VirtualClock


class WithSnapshots(MemoryFileSystem, Snapshots):
    """A file system that says what it was asked."""

    def __init__(self) -> None:
        super().__init__(1 << 20, fsid=77, clock=VirtualClock(), random=Random(1))
        self.asked: list[tuple[str, ...]] = []
        self.kept = [Snapshot("clean", 1_795_182_693_000_000_000, 8_192_000)]

    def snapshot_create(self, name: str) -> None:
        self.asked.append(("create", name))

    def snapshots(self) -> list[Snapshot]:
        return self.kept

    def snapshot_rollback(self, name: str, then: Callable[[], None]) -> None:
        if name != "clean":
            raise VfsError(Code.NOENT, f'there is no snapshot "{name}"')
        self.asked.append(("rollback", name))
        then()

    def snapshot_delete(self, name: str) -> None:
        self.asked.append(("delete", name))


def plain() -> FileSystem:
    return MemoryFileSystem(1 << 20, fsid=5, clock=VirtualClock(), random=Random(1))


@contextmanager
def serving(path: Path, verbs: dict[str, Verb]) -> Iterator[ControlServer]:
    server = ControlServer(path, verbs)
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield server
    finally:
        server.stop()
        thread.join(10)
        assert not thread.is_alive()
        server.close()
    assert not path.exists()


def fails(request: Any) -> None:
    raise ControlError("it cannot", "try another")


VERBS: dict[str, Verb] = {
    "echo": dict,
    "fail": fails,
    "large": lambda request: "x" * 4_000_000,
}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with serving(tmp_path / "control", VERBS):
        yield tmp_path / "control"


def connected(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(10)
    client.connect(str(path))
    return client


def ask(path: Path, said: bytes) -> list[dict[str, Any]]:
    """What is answered to these bytes, until the server has nothing more to say."""
    with connected(path) as client:
        client.sendall(said)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as replies:
            return [json.loads(line) for line in replies]


def test_a_request_is_a_line_and_so_is_the_reply(path: Path) -> None:
    assert ask(path, b'{"verb": "echo", "x": [1, 2]}\n') == [
        {"ok": True, "result": {"verb": "echo", "x": [1, 2]}}
    ]
    assert len(ask(path, b'{"verb": "echo"}\n\n{"verb": "echo"}\r\n')) == 2
    assert ask(path, b'{"verb": "fail"}\n') == [
        {"ok": False, "error": "it cannot", "hint": "try another"}
    ]


def test_a_request_may_come_in_pieces(path: Path) -> None:
    with connected(path) as client, connected(path) as other:
        for byte in b'{"verb": "echo"}':
            client.sendall(bytes([byte]))
        other.sendall(b'{"verb": "echo"}\n')
        assert b'"ok": true' in other.recv(1000)  # meanwhile others are served
        client.sendall(b"\n")
        assert b'"ok": true' in client.recv(1000)


@pytest.mark.parametrize(
    "said",
    [
        b"hello\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"17\n",
        b'{"verb": 1}\n',
        b'{"verb": ["echo"]}\n',
        b'{"verb": "nonsense"}\n',
        b"{}\n",
        b"[" * 10_000 + b"\n",
        b'{"verb": "echo", "x": ' + b"9" * 10_000 + b"}\n",
    ],
)
def test_what_is_no_request_is_told_and_nobody_is_harmed(path: Path, said: bytes) -> None:
    [reply] = ask(path, said)
    assert reply["ok"] is False and reply["error"]
    assert ask(path, b'{"verb": "echo"}\n')[0]["ok"]


def test_a_line_without_an_end_is_not_kept(path: Path) -> None:
    with connected(path) as client:
        client.sendall(b"x" * (limits.CONTROL_REQUEST_BYTES_MAX + 1))
        assert b"too long" in client.recv(1000)
        assert client.recv(1000) == b""
    assert ask(path, b'{"verb": "echo"}\n')[0]["ok"]


def test_who_does_not_read_is_let_go(path: Path) -> None:
    with connected(path) as client:
        client.sendall(b'{"verb": "large"}\n')
        assert ask(path, b'{"verb": "echo"}\n')[0]["ok"]
        received = 0
        while data := client.recv(1 << 20):
            received += len(data)
        assert received < 4_000_000


def test_clients_that_say_nothing_make_room(path: Path) -> None:
    silent = [connected(path) for _ in range(limits.CONTROL_CLIENTS_MAX * 3)]
    assert ask(path, b'{"verb": "echo"}\n')[0]["ok"]
    assert silent[0].recv(1) == b""
    for client in silent:
        client.close()


def test_a_client_that_goes_away(path: Path) -> None:
    for _ in range(50):
        client = connected(path)
        client.sendall(b'{"verb": "echo"}\n' * 3)
        client.close()
    assert ask(path, b'{"verb": "echo"}\n')[0]["ok"]


def test_an_exception_that_nobody_expected_ends_one_client(tmp_path: Path) -> None:
    """It comes out of `serve` (machine.py logs it, and enters it again)."""

    def bug(request: Any) -> None:
        raise ZeroDivisionError

    server = ControlServer(tmp_path / "control", {**VERBS, "bug": bug})
    with connected(tmp_path / "control") as client:
        client.sendall(b'{"verb": "bug"}\n')
        with pytest.raises(ZeroDivisionError):
            server.serve()
        assert client.recv(100) == b""
    thread = threading.Thread(target=server.serve)
    thread.start()
    assert ask(tmp_path / "control", b'{"verb": "echo"}\n')[0]["ok"]
    server.stop()
    thread.join(10)
    server.close()


# --- whose socket ------------------------------------------------------------


def test_only_the_owner_may_open_it(path: Path) -> None:
    mode = path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_one_that_a_killed_server_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    with serving(path, VERBS):
        assert ask(path, b'{"verb": "echo"}\n')[0]["ok"]


def test_one_that_lives_is_not(path: Path) -> None:
    with pytest.raises(ControlError, match="another server"):
        ControlServer(path, VERBS)
    assert ask(path, b'{"verb": "echo"}\n')[0]["ok"]


def test_one_that_lives_but_is_busy_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as busy:
        busy.bind(str(path))
        busy.listen(0)
        with connected(path), pytest.raises(ControlError, match="another server"):
            ControlServer(path, VERBS)


@pytest.mark.parametrize(
    ("name", "words"),
    [("file", "something else"), ("no/such/folder", "No such"), ("x" * 200, "too long")],
)
def test_where_there_cannot_be_one(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ControlError, match=words):
        ControlServer(tmp_path / name, VERBS)
    assert (tmp_path / "file").read_text() == "precious"


def test_that_of_a_successor_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "control"
    first = ControlServer(path, VERBS)
    path.unlink()
    second = ControlServer(path, VERBS)
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


def test_the_umask_of_the_process_stays(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        ControlServer(tmp_path / "control", VERBS).close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


# --- snapshots, by rumpctl ------------------------------------------------------


Told = tuple[int, str, str]
Ctl = Callable[..., Told]


@pytest.fixture
def filesystem() -> WithSnapshots:
    return WithSnapshots()


@pytest.fixture
def rolled_back() -> list[str]:
    return []


@pytest.fixture
def ctl(
    tmp_path: Path,
    filesystem: WithSnapshots,
    rolled_back: list[str],
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Ctl]:
    """Runs rumpctl against a server with an image at /data and memory at /."""
    verbs = SnapshotVerbs(
        {"/": plain(), "/data": filesystem}, lambda: rolled_back.append("it")
    ).verbs

    def run(*words: str) -> Told:
        code = rumpctl(["--control", str(tmp_path / "control"), *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    with serving(tmp_path / "control", verbs):
        yield run


def test_create_and_delete(ctl: Ctl, filesystem: WithSnapshots) -> None:
    assert ctl("snapshot", "create", "one ü") == (0, "", "")
    assert ctl("snapshot", "delete", "one ü", "--image", "/data/") == (0, "", "")
    assert filesystem.asked == [("create", "one ü"), ("delete", "one ü")]


def test_after_a_rollback_nfsd_is_told(
    ctl: Ctl, filesystem: WithSnapshots, rolled_back: list[str]
) -> None:
    assert ctl("snapshot", "rollback", "clean") == (0, "", "")
    assert filesystem.asked == [("rollback", "clean")]
    assert rolled_back == ["it"]
    assert ctl("snapshot", "rollback", "claen") == (
        1, "", 'error: there is no snapshot "claen"\n'
    )  # fmt: skip
    assert rolled_back == ["it"]


def test_list(ctl: Ctl) -> None:
    code, out, err = ctl("snapshot", "list")
    assert (code, err) == (0, "")
    assert out.split() == ["clean", "2026-11-20T13:51:33Z", "8,192,000", "bytes", "changed"]
    code, out, _ = ctl("--json", "snapshot", "list")
    assert json.loads(out) == [
        {"name": "clean", "created_ns": 1_795_182_693_000_000_000, "changed_bytes": 8_192_000}
    ]


@pytest.mark.parametrize(
    ("image", "words"),
    [("/", "keeps no snapshots"), ("/nowhere", "nothing is mounted at /nowhere")],
)
def test_what_keeps_none(ctl: Ctl, image: str, words: str) -> None:
    code, out, err = ctl("snapshot", "list", "--image", image)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and words in err and "\nhint: " in err


def test_which_one_has_to_be_said_where_there_are_several() -> None:
    one, other = WithSnapshots(), WithSnapshots()
    verbs = SnapshotVerbs({"/": one, "/data": other}, lambda: None).verbs
    with pytest.raises(ControlError, match="which one"):
        verbs["snapshot-create"]({"name": "x"})
    verbs["snapshot-create"]({"name": "x", "image": "/"})
    assert (one.asked, other.asked) == ([("create", "x")], [])
    with pytest.raises(ControlError, match="keeps snapshots") as caught:
        SnapshotVerbs({"/": plain()}, lambda: None).verbs["snapshot-list"]({})
    assert ",overlay" in caught.value.hint


@pytest.mark.parametrize("request_", [{}, {"name": 1}, {"name": None}, {"name": ["x"]}])
def test_a_name_is_text(request_: dict[str, Any]) -> None:
    verbs = SnapshotVerbs({"/": WithSnapshots()}, lambda: None).verbs
    for verb in ("snapshot-create", "snapshot-rollback", "snapshot-delete"):
        with pytest.raises(ControlError, match="name"):
            verbs[verb](request_)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["snapshot"],
        ["snapshot", "create"],
        ["snapshot", "eat", "x"],
        ["snapshot", "list", "x"],
        ["nonsense"],
    ],
)
def test_a_command_line_that_cannot_be(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rumpctl(["--control", "nowhere", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ")


def test_without_a_socket_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert rumpctl(["snapshot", "list"]) == 2
    assert "--control" in capsys.readouterr().err


def test_nobody_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rumpctl(["--control", str(tmp_path / "nothing"), "snapshot", "list"]) == 1
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n", b"[]\n", b"{}\n", b'{"ok": false}\n'])
def test_somebody_else_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: bytes
) -> None:
    path = tmp_path / "other"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen()

        def respond() -> None:
            client, _ = other.accept()
            client.recv(1000)
            client.sendall(answer)
            client.close()

        thread = threading.Thread(target=respond)
        thread.start()
        assert rumpctl(["--control", str(path), "snapshot", "list"]) == 1
        thread.join(10)
    assert "no answer of a rumpnfsd" in capsys.readouterr().err
