"""A directory of the host, served as a file system.

syscalls.py    what Python's os module lacks, all on descriptors
identities.py  handle <-> open file: the kernel's handles, or a map where these are not permitted
nodes.py       a file, its descriptors, and what can be done with it
filesystem.py  the directory as a whole, and the files that are kept open

No name from the wire leaves the directory: names are opened one component at a time, relative to a
descriptor of their directory, without following symbolic links, so it does not matter what is
renamed or replaced on the host meanwhile. Descriptors of devices, FIFOs and sockets are only ever
of the kind that cannot be read or written (O_PATH). What is mounted below the directory is not
crossed into: it is listed, and looking it up gives ACCES.

Everything is done as the user who runs the server; that a caller may do it was decided above, by
the modes that the host shows. New files are given to the caller where the host lets us (root),
otherwise they are ours.

A file that was moved out of the directory on the host can still be reached by a handle that was
given out before, as with exports that have no_subtree_check; a directory above it cannot.
"""

from appliance.vfs.hostdir.filesystem import HostDirectory

__all__ = ["HostDirectory"]
