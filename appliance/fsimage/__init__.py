"""File systems inside images: from a file on the host to a vfs.FileSystem.

    image.py       what the user named (`FILE[@PATH][,ro][,partition=N]`) -> an open FileSystem
    probe.py       which file system or container is in there, by its magic
    partition.py   MBR and GPT -> the byte ranges of partitions
    device.py      where bytes are: a file, a partition of it, changes in memory above it
    ext4/          ext2, ext3 and ext4

Reading order: device.py, image.py, then ext4/__init__.py.
"""
