"""A limit on everything that a peer, a user or a file can make large, with its reason.

One section a part. A limit that depends on another one asserts the relation.
"""

from __future__ import annotations

from typing import Final

from appliance.clock import MILLISECOND, SECOND

KiB: Final = 1 << 10
MiB: Final = 1 << 20

# --- netstack ----------------------------------------------------------------

# --- oncrpc ------------------------------------------------------------------

CALL_DATA_BYTES_MAX: Final = 1 * MiB
"""Bulk data in one READ or WRITE: what Linux asks for at most (NFSSVC_MAXBLKSIZE)."""

CALL_BYTES_MAX: Final = CALL_DATA_BYTES_MAX + 64 * KiB
"""One RPC record: the data and everything around it, with room for long paths and credentials."""

# --- threads -----------------------------------------------------------------

HELD_UP_AFTER: Final = 2 * MILLISECOND
"""A leader that serves one batch for longer than this has blocked without saying so."""

WATCH_LINGERS: Final = 50 * MILLISECOND
"""How long the ticker keeps watching after the last call, before it sleeps until a deadline."""

STOP_GRACE: Final = 2 * SECOND
"""How long an orderly stop waits for calls in progress and for peers to acknowledge our FIN."""

# --- vfs ---------------------------------------------------------------------

NAME_BYTES_MAX: Final = 255
"""One name in a directory: what ext4, xfs, tmpfs and Linux's NAME_MAX all say."""

PATH_BYTES_MAX: Final = 1024
"""A path in a MOUNT call (MNTPATHLEN, RFC 1813 section 5.1.3) and the text of a symbolic link
that NFS clients are promised (PATH_MAX is 4096, but it is the mount path that is looked up)."""

HANDLE_BYTES_MAX: Final = 56
"""A file handle on the wire: version 3 allows 64, but ESXi accepts no more than 56."""

# --- exports -----------------------------------------------------------------

EXPORTS_BYTES_MAX: Final = 1 * MiB
"""One exports file: thousands of lines, and still read at once at every reload."""

EXPORT_ENTRIES_MAX: Final = 10_000
"""Pairs of a path and a client in one exports file: a client is compared with each of a path."""

EXPORT_DECISIONS_MAX: Final = 4096
"""Remembered pairs of an export and a client address: more clients than one link has, and at about
200 bytes each no way for a peer with many addresses to fill the memory."""

# --- fsimage -----------------------------------------------------------------
