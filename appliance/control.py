"""Talking to a running server: a Unix socket (`--control PATH`), over which rumpctl speaks.

A request is one line of JSON, an object with a "verb" and what the verb needs; so is the reply:

    {"verb": "snapshot-create", "name": "clean"}
    {"ok": true, "result": null}
    {"ok": false, "error": "there is no snapshot \\"claen\\"", "hint": ""}

Who may open the socket may do everything: its mode is 0600. One thread serves all clients; a verb
takes milliseconds. What a client sends is bounded, and a client that does not read its replies
loses its connection.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from appliance import limits
from appliance.trace import log
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, Snapshots

Request = Mapping[str, Any]
Verb = Callable[[Request], Any]
"""What is asked -> the result, something that JSON can say. ControlError, VfsError."""

_MODE: Final = 0o600
_RECEIVE_BYTES: Final = 16 * limits.KiB


_OVERLAY: Final = (
    "images keep snapshots with --image FILE,overlay or --image FILE,overlay=OVERLAYFILE"
)


class ControlError(Exception):
    """The socket cannot be had, or a request cannot be fulfilled; `hint` says what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ControlServer:
    """The socket, and whoever has connected to it."""

    def __init__(self, path: Path, verbs: Mapping[str, Verb]) -> None:
        """Listen. ControlError: somebody else does, or there cannot be a socket."""
        self._path: Final = path
        self._verbs: Final = verbs
        self._received: Final[dict[socket.socket, bytearray]] = {}
        """The clients, the one that was silent longest first, with what is not a line yet."""
        self._stopping = False
        self._listener: Final = _listen(path)
        self._identity: Final = os.stat(path)
        self._woken, self._wake = socket.socketpair()
        self._selector: Final = selectors.DefaultSelector()
        for each in (self._listener, self._woken):
            each.setblocking(False)
            self._selector.register(each, selectors.EVENT_READ)

    def serve(self) -> None:
        """The body of the thread: until `stop`."""
        while not self._stopping:
            for key, _ in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._received:
                    self._hear(key.fileobj)

    def stop(self) -> None:
        """Tell the thread to return."""
        self._stopping = True
        self._wake.send(b"\0")

    def close(self) -> None:
        """Take the socket away. Nobody serves it any more."""
        for client in list(self._received):
            self._drop(client)
        self._selector.close()
        for each in (self._listener, self._woken, self._wake):
            each.close()
        try:
            if os.path.samestat(os.stat(self._path), self._identity):
                os.unlink(self._path)
        except OSError as error:
            log.warning("event=control path=%s error=%r", self._path, error.strerror)

    # --- clients ------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        while len(self._received) >= limits.CONTROL_CLIENTS_MAX:
            self._drop(next(iter(self._received)))
        client.setblocking(False)
        self._received[client] = bytearray()
        self._selector.register(client, selectors.EVENT_READ)

    def _drop(self, client: socket.socket) -> None:
        del self._received[client]
        self._selector.unregister(client)
        client.close()

    def _hear(self, client: socket.socket) -> None:
        """Take in what a client says, and answer it. One that ends, breaks off, says too much or
        does not listen is let go; and one that asks for what must not happen, with the exception
        of which machine.py tells."""
        goes_on = False
        try:
            goes_on = self._take(client, client.recv(_RECEIVE_BYTES))
        except OSError as error:
            log.debug("event=control error=%r", error.strerror)
        finally:
            if not goes_on:
                self._drop(client)

    def _take(self, client: socket.socket, data: bytes) -> bool:
        """Answer every whole line; whether it goes on."""
        received = self._received.pop(client)
        self._received[client] = received  # as the one that has been heard last
        *lines, rest = (received + data).split(b"\n")
        received[:] = rest
        for line in lines:
            if line.strip() and not self._say(client, self._reply(line)):
                return False
        if len(rest) > limits.CONTROL_REQUEST_BYTES_MAX:
            self._say(client, _refusal("the request is too long"))
            return False
        return bool(data)

    def _say(self, client: socket.socket, reply: dict[str, Any]) -> bool:
        """Whether the reply went out whole: there is room for it, unless nobody reads."""
        raw = json.dumps(reply).encode() + b"\n"
        return client.send(raw, socket.MSG_NOSIGNAL) == len(raw)

    def _reply(self, line: bytearray) -> dict[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return _refusal("a request is one line of JSON")
        if not isinstance(request, dict):
            return _refusal("a request is a JSON object")
        name = request.get("verb")
        verb = self._verbs.get(name) if isinstance(name, str) else None
        if verb is None:
            return _refusal("there is no such verb", f"there is: {', '.join(sorted(self._verbs))}")
        try:
            return {"ok": True, "result": verb(request)}
        except ControlError as error:
            return _refusal(str(error), error.hint)
        except VfsError as error:
            hint = _OVERLAY if error.code is Code.NOTSUPP else ""
            return _refusal(error.detail or error.code.name, hint)


def _refusal(error: str, hint: str = "") -> dict[str, Any]:
    return {"ok": False, "error": error, "hint": hint}


# --- the socket --------------------------------------------------------------


def _listen(path: Path) -> socket.socket:
    """A socket at `path`, where none is that somebody listens to. ControlError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _make_way(path)
        mask = os.umask(0o777 & ~_MODE)  # nobody else, from the first instant
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ControlError(f"--control {path}: {error.strerror or error}") from None
    except ControlError:
        listener.close()
        raise
    return listener


def _make_way(path: Path) -> None:
    """Remove a socket that was left by a server which was killed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ControlError(f"--control {path}: there is something else", "name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)  # one whose queue is full is alive, too
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise ControlError(f"--control {path}: another server listens there", "name another path")


# --- verbs -------------------------------------------------------------------


class SnapshotVerbs:
    """Snapshots of what is served. `mounts`: where what is mounted. `rolled_back` is called when a
    file system has gone back, before anybody sees it."""

    def __init__(self, mounts: Mapping[str, FileSystem], rolled_back: Callable[[], None]) -> None:
        self._mounts: Final = mounts
        self._rolled_back: Final = rolled_back

    @property
    def verbs(self) -> dict[str, Verb]:
        return {
            "snapshot-create": self.create,
            "snapshot-list": self.list,
            "snapshot-rollback": self.rollback,
            "snapshot-delete": self.delete,
        }

    def create(self, request: Request) -> None:
        self._which(request).snapshot_create(_text(request, "name"))

    def list(self, request: Request) -> Any:
        return [
            {
                "name": snapshot.name,
                "created_ns": snapshot.created_ns,
                "changed_bytes": snapshot.changed_bytes,
            }
            for snapshot in self._which(request).snapshots()
        ]

    def rollback(self, request: Request) -> None:
        name = _text(request, "name")
        self._which(request).snapshot_rollback(name, self._rolled_back)
        log.info("event=rollback snapshot=%r", name)

    def delete(self, request: Request) -> None:
        self._which(request).snapshot_delete(_text(request, "name"))

    def _which(self, request: Request) -> Snapshots:
        """The file system that is meant: the one that is named, or the only one there is."""
        able = {path: each for path, each in self._mounts.items() if isinstance(each, Snapshots)}
        if "image" in request:
            path = "/" + _text(request, "image").strip("/")
            if path not in self._mounts:
                mounted = ", ".join(self._mounts)
                raise ControlError(f"nothing is mounted at {path}", f"there is: {mounted}")
            if path not in able:
                raise ControlError(f"what is mounted at {path} keeps no snapshots", _OVERLAY)
            return able[path]
        if not able:
            raise ControlError("nothing that is served keeps snapshots", _OVERLAY)
        if len(able) > 1:
            raise ControlError("which one?", f"--image {' or --image '.join(able)}")
        return next(iter(able.values()))


def _text(request: Request, key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise ControlError(f'"{key}" is missing, or is no text')
    return value
