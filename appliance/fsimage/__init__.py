"""File systems inside images: from a file on the host to a vfs.FileSystem.

    image.py           what the user named -> an open FileSystem
    probe.py           which file system or container is in there, by its magic
    partition.py       MBR and GPT -> the byte ranges of partitions
    spool.py           compressed images
    device.py          where bytes are: a file, a partition of it, changes in memory above it
    in_use.py          who else uses a file                   buffers.py      lists of buffers
    layers.py          changed blocks in memory, and earlier states of them
    snapshots.py       what a device offers that keeps earlier states
    overlay_format.py  a file of changed blocks               slot_map.py     which block is where
    overlay_file.py    a device above such a file             overlays.py     opened, and merged
    merging.py         what a merge writes, in which order
    durability.py      what --sync promises
    ext4/              ext2, ext3 and ext4

Reading order: device.py, image.py, then ext4/__init__.py.
"""
