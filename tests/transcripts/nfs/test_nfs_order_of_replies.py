"""In which order calls of one connection are answered, told as a transcript.

    >  a call           <  its reply            flush [CODE]  the device, and how it went

Calls are named by what they are about. Between the lines nothing happens: every reply that there
is has to be named before the next line that is not one.
"""

from __future__ import annotations

from typing import Any

import pytest

from appliance.nfsd.v3.protocol import (
    ACCESS3args,
    COMMIT3args,
    CREATE3args,
    GETATTR3args,
    Guarded,
    LOOKUP3args,
    READ3args,
    REMOVE3args,
    WRITE3args,
    diropargs3,
    sattr3,
    stable_how,
)
from appliance.oncrpc.record import mark
from appliance.vfs.errors import Code, VfsError
from tests.sim.clock import VirtualClock
from tests.sim.nfs_client import Refused
from tests.sim.nfs_world import NfsWorld
from tests.sim.ticket_filesystem import TicketFileSystem


class Transcript:
    """One connection of a client that knows a file."""

    def __init__(self) -> None:
        self.filesystem = TicketFileSystem(2, VirtualClock())
        world = NfsWorld("/ *(rw,no_root_squash,sync)", [("/", self.filesystem)])
        self.rpc = world.rpc
        self.client = world.client()
        self.root = self.client.mount()
        self.file = self.client.create(self.root, b"file")
        self.transport, self.session = self.rpc.connect()
        self.asked: dict[int, tuple[str, Any]] = {}
        self.sent: dict[str, bytes] = {}

    def play(self, text: str) -> None:
        for line in filter(None, map(str.strip, text.splitlines())):
            match line.partition(" "):
                case "<", _, name:
                    self.expect(name)
                case ">", _, name:
                    self.expect_silence(line)
                    self.say(name)
                case "flush", _, code:
                    self.expect_silence(line)
                    self.filesystem.flush(VfsError(Code[code]) if code else None)
                case _:
                    raise AssertionError(f"not understood: {line}")
        self.expect_silence("the end")

    def say(self, name: str) -> None:
        """A call; one that was sent before is sent again, with its xid."""
        if name not in self.sent:
            args = self.args(*name.split())
            self.sent[name] = self.client.request(args)
            self.asked[self.client.rpc.xid] = (name, args)
        call = self.sent[name]
        self.session.text_arrived([memoryview(mark(len(call)) + call)])
        self.rpc.run()

    def args(self, procedure: str, name: str) -> Any:
        file, there = self.file, diropargs3(self.root, name.encode())
        return {
            "ACCESS": ACCESS3args(file, 1),
            "COMMIT": COMMIT3args(file, 0, 0),
            "CREATE": CREATE3args(there, Guarded(sattr3())),
            "GETATTR": GETATTR3args(self.root),
            "LOOKUP": LOOKUP3args(there),
            "READ": READ3args(file, 0, 10),
            "REMOVE": REMOVE3args(there),
            "UNSTABLE": WRITE3args(file, 0, 1, stable_how.UNSTABLE, [b"u"]),
            "WRITE": WRITE3args(file, 0, 1, stable_how.FILE_SYNC, [b"w"]),
        }[procedure]

    def expect(self, wanted: str) -> None:
        assert self.transport.sent, f"no reply to {wanted}"
        record, *self.transport.sent = self.transport.sent
        later, self.transport.sent = self.transport.sent, [record]
        (reply,) = self.transport.replies()
        self.transport.sent = later
        name, args = self.asked[reply.xid]
        try:
            self.client.result(args, reply)
        except Refused as refusal:
            name += f" {refusal.status.name.removeprefix('NFS3ERR_')}"
        assert name == wanted

    def expect_silence(self, before: str) -> None:
        assert not self.transport.sent, f"an unexpected reply, before {before!r}"


@pytest.fixture
def transcript() -> Transcript:
    return Transcript()


def test_calls_behind_a_held_one_are_answered_before_it(transcript: Transcript) -> None:
    transcript.play("""
        > CREATE a
        > GETATTR root
        < GETATTR root
        > LOOKUP a
        < LOOKUP a
        > READ file
        < READ file
        flush
        < CREATE a
    """)


def test_what_one_flush_releases_comes_in_the_order_of_the_calls(transcript: Transcript) -> None:
    transcript.play("""
        > CREATE a
        > WRITE file
        > REMOVE a
        > ACCESS file
        < ACCESS file
        > COMMIT file
        flush
        < CREATE a
        < WRITE file
        < REMOVE a
        < COMMIT file
    """)


def test_every_change_has_the_flush_after_it(transcript: Transcript) -> None:
    transcript.play("""
        > CREATE a
        flush
        < CREATE a
        > CREATE b
        > UNSTABLE file
        < UNSTABLE file
        flush
        < CREATE b
        > COMMIT file
        flush
        < COMMIT file
    """)


def test_what_fails_at_once_does_not_wait_for_a_flush(transcript: Transcript) -> None:
    transcript.play("""
        > CREATE a
        > CREATE file
        < CREATE file EXIST
        > REMOVE nothing
        < REMOVE nothing NOENT
        flush
        < CREATE a
    """)


def test_a_flush_that_fails_fails_all_that_it_was_to_keep(transcript: Transcript) -> None:
    transcript.play("""
        > CREATE a
        > WRITE file
        > READ file
        < READ file
        flush IO
        < CREATE a IO
        < WRITE file IO
        > CREATE b
        flush ROFS
        < CREATE b ROFS
    """)


def test_a_call_that_is_sent_again_is_answered_once_while_it_is_held(
    transcript: Transcript,
) -> None:
    transcript.play("""
        > REMOVE file
        > REMOVE file
        > GETATTR root
        < GETATTR root
        flush
        < REMOVE file
        > REMOVE file
        < REMOVE file
    """)
