"""A client on the kernel's TCP that does what clients do, and compares every byte.

    python -m tests.interop.wire_client ADDRESS KIBIBYTES [SEED]

Files are made, written in pieces of all sizes, read back in others, listed and removed. It prints
how many bytes went each way, and how long that took, as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Final

from appliance.nfsd.v3 import protocol as nfs
from appliance.nfsd.v3.protocol import stable_how
from tests.proofs import load
from tests.sim.nfs_client import NfsClient

FILES: Final = 3
SIZES: Final = (1, 100, 1448, 4096, 30_000, 65_536, 262_144)
PATIENCE_SECONDS: Final = 60
"""For one reply: on a lossy wire several retransmissions, each after twice the time."""


def write(client: NfsClient, file: bytes, data: bytes, chance: random.Random) -> None:
    at = 0
    while at < len(data):
        piece = data[at : at + chance.choice(SIZES)]
        client.write(file, piece, at, stable_how.UNSTABLE)
        at += len(piece)
    client(nfs.COMMIT3args(file, 0, 0))


def read(client: NfsClient, file: bytes, size: int, chance: random.Random) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = client.read(file, len(data), chance.choice(SIZES))
        assert piece, f"the file ends after {len(data)} of {size}"
        data += piece
    return bytes(data)


def work(client: NfsClient, size: int, chance: random.Random) -> None:
    """All of it, with `size` bytes each way."""
    root = client.mount()
    directory = client.mkdir(root, b"%x" % chance.getrandbits(64))
    texts = {b"file-%d" % number: chance.randbytes(size // FILES) for number in range(FILES)}
    for name, data in texts.items():
        write(client, client.create(directory, name), data, chance)
    for name, data in texts.items():
        handle = client.lookup(directory, name)
        assert client.attributes(handle).size == len(data)
        assert read(client, handle, len(data), chance) == data, f"{name!r} is not what was written"
    names = {entry.name for entry in client.listing(directory)} - {b".", b".."}
    assert names == set(texts)
    for name in texts:
        client.remove(directory, name)


def be_a_client(server: str, size: int, chance: random.Random) -> None:
    """One connection's work, told when it is done."""
    load.REPLY_SECONDS = PATIENCE_SECONDS  # type: ignore[misc]
    began = time.monotonic()
    connection = load.Connection(server, 1)
    work(connection.nfs, size, chance)
    connection.close()
    took = time.monotonic() - began
    print(json.dumps({"bytes": size // FILES * FILES, "seconds": took}), flush=True)


def main() -> None:
    server, size = sys.argv[1], int(sys.argv[2]) << 10
    be_a_client(server, size, random.Random(sys.argv[3] if len(sys.argv) > 3 else 1))


if __name__ == "__main__":
    main()
