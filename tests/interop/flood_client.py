"""An honest client in a flood: it writes and reads for ever, compares, and says how far it is.

    python -m tests.interop.flood_client ADDRESS

The first line is the port of its connection; then one line for each round: the time of the
monotonic clock, which all processes share, and how many bytes have gone both ways.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Final

from tests.proofs import load
from tests.sim.nfs_client import NFS_PORT

PIECE_BYTES: Final = 32 << 10
PATIENCE_SECONDS: Final = 60


def main() -> None:
    load.REPLY_SECONDS = PATIENCE_SECONDS  # type: ignore[misc]
    connection = load.Connection(sys.argv[1], 1)
    client = connection.nfs
    file = client.create(client.mount(), b"honest")
    print(connection.port(NFS_PORT), flush=True)
    chance, total = random.Random(1), 0
    while True:
        data = chance.randbytes(PIECE_BYTES)
        offset = chance.randrange(100) * PIECE_BYTES
        client.write(file, data, offset)
        assert client.read(file, offset, PIECE_BYTES) == data
        total += 2 * PIECE_BYTES
        print(time.monotonic(), total, flush=True)


if __name__ == "__main__":
    main()
