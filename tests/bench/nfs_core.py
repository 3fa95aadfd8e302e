"""How fast are the procedures of NFS version 3? Microseconds each; run it as a script.

    python -m tests.bench.nfs_core [--profile PROCEDURE]

A procedure is measured from its decoded arguments to its encoded results, on a file system in
memory: handle, export, rights, the act and the encoding, without RPC and without a network.
Every line has its target; more than that is marked.
"""

from __future__ import annotations

import cProfile
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from appliance.limits import KiB, MiB
from appliance.nfsd.v3.call import NfsCall
from appliance.nfsd.v3.protocol import (
    ACCESS3args,
    COMMIT3args,
    CREATE3args,
    FSSTAT3args,
    GETATTR3args,
    Guarded,
    LOOKUP3args,
    READ3args,
    READDIR3args,
    READDIRPLUS3args,
    REMOVE3args,
    SETATTR3args,
    WRITE3args,
    diropargs3,
    sattr3,
    stable_how,
)
from appliance.oncrpc.auth import Credential, auth_flavor
from tests.sim.nfs_client import PROCEDURES
from tests.sim.nfs_world import NfsWorld
from tests.sim.rpc_client import Loopback

ROUNDS = 200
ROUND_SECONDS = 0.002
NO_VERIFIER = bytes(8)
COUNT_MAX = 1 << 20


@dataclass
class Line:
    """One thing to measure: what is done once, and how long it may take."""

    name: str
    target_us: float
    run: Callable[[], object]


class Bench:
    """A server with one directory of 1,000 files and one file of 1 MiB."""

    def __init__(self) -> None:
        self.world = NfsWorld("/ *(rw,no_root_squash)", size_bytes=256 * MiB)
        client = self.world.client()
        self.root = client.mount()
        self.directory = client.mkdir(self.root, b"directory")
        for number in range(1000):
            client.create(self.directory, b"file-%04d" % number)
        self.file = client.create(self.root, b"data")
        client.write(self.file, bytes(MiB))
        self.credential = Credential(auth_flavor.AUTH_SYS, 0, 0, (0, 4, 24, 27))
        self.transport = Loopback()

    def perform(self, args: Any) -> object:
        """One procedure, without RPC around it."""
        call: NfsCall[Any] = NfsCall(self.world.nfsd, self.credential, self.transport)
        return PROCEDURES[type(args)].perform(call, args)

    def doing(self, name: str, target_us: float, args: Any) -> Line:
        procedure = PROCEDURES[type(args)]
        nfsd, credential, transport = self.world.nfsd, self.credential, self.transport

        def run() -> object:
            return procedure.perform(NfsCall(nfsd, credential, transport), args)

        return Line(name, target_us, run)

    def lines(self) -> list[Line]:
        root, directory, file = self.root, self.directory, self.file
        data = [memoryview(bytes(64 * KiB))]
        a_name = diropargs3(directory, b"file-0500")
        new = diropargs3(root, b"new")

        def create_and_remove() -> None:
            self.perform(CREATE3args(new, Guarded(sattr3(mode=0o644))))
            self.perform(REMOVE3args(new))

        return [
            self.doing("GETATTR", 5, GETATTR3args(file)),
            self.doing("LOOKUP", 9, LOOKUP3args(a_name)),
            self.doing("ACCESS", 7, ACCESS3args(file, 0x3F)),
            self.doing("READ 4 KiB", 10, READ3args(file, 8192, 4 * KiB)),
            self.doing("READ 1 MiB", 30, READ3args(file, 0, MiB)),
            self.doing("WRITE 64 KiB", 40, WRITE3args(file, 0, 65536, stable_how.UNSTABLE, data)),
            self.doing("COMMIT", 10, COMMIT3args(file, 0, 0)),
            self.doing("SETATTR", 20, SETATTR3args(file, sattr3(mode=0o600))),
            self.doing("FSSTAT", 8, FSSTAT3args(root)),
            Line("CREATE and REMOVE", 60, create_and_remove),
            self.doing("READDIR 1000", 400, READDIR3args(directory, 0, NO_VERIFIER, COUNT_MAX)),
            self.doing(
                "READDIRPLUS 1000",
                800,
                READDIRPLUS3args(directory, 0, NO_VERIFIER, COUNT_MAX, COUNT_MAX),
            ),
        ]


def measure(run: Callable[[], object]) -> float:
    """Microseconds: the best of many short rounds, so that other work on the machine is left
    out."""
    start = perf_counter()
    run()
    run()
    count = max(1, int(ROUND_SECONDS * 2 / (perf_counter() - start)))
    best = float("inf")
    for _ in range(ROUNDS):
        start = perf_counter()
        for _ in range(count):
            run()
        best = min(best, (perf_counter() - start) / count)
    return best * 1e6


def main() -> None:
    wanted = sys.argv[2] if sys.argv[1:2] == ["--profile"] else None
    for line in Bench().lines():
        if wanted is None:
            took = measure(line.run)
            mark = "  <-- slower than its target" if took > line.target_us else ""
            print(f"{line.name:20} {took:8.2f} us   target {line.target_us:6.1f}{mark}")
        elif line.name == wanted:
            run = line.run
            cProfile.runctx("for _ in range(20_000): run()", {}, {"run": run}, sort="tottime")


if __name__ == "__main__":
    main()
