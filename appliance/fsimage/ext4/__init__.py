"""ext2, ext3 and ext4, from the published on-disk format, in its names.

The format
    record.py        how an on-disk record is declared     layout.py      the records
    crc.py           the checksums                         hash.py        names -> hashes
Reading
    superblock.py    geometry and features                 volume.py      verified metadata blocks
    inode.py         one inode                             cache.py       bounded memories
    extents.py       where the blocks of a file are        data.py        what is in them
    directory.py     names in order                        chunk.py       a part of them, decoded
    htree.py         the index of a directory              xattr.py       attributes: the format
    xattr_reader.py  the attributes of an inode            acl.py         lists, as they are on disk
Changing
    operation.py     one change: whole, or not at all      writer.py      operations -> transactions
    journal/         transactions -> disk; recovery        transfers.py   data on its way
    bits.py, bitmaps.py, groups.py, free_space.py, inode_space.py, allocator.py
                     from bits to who gets which blocks and inodes
    map_changer.py, extent_tree.py, indirect.py, map_changes.py
                     changing where the blocks of a file are
    writing.py, zeroing.py, content.py
                     file data: to the device first, then into the file
    directory_block.py, directory_changes.py, index_changes.py
                     changing directories
    xattr_changes.py, orphans.py, removal.py, changes.py
                     attributes, what goes, names
Served
    opening.py       from a device to a volume             mmp.py         who else has it mounted
    half_merged.py   the mark of what is no file system before a merge is finished
    node.py, filesystem.py                                 the vfs interface
    check/           whether all of it is sound

Reading order: volume.py, inode.py, operation.py, writer.py, journal/, changes.py.

What is published is never changed, only replaced: blocks are immutable bytes, with their checksums
in, as they go to the disk. Whoever reads metadata holds the lock of the file system; data is read
and written outside of it.

What is found damaged is an I/O error of the object that it belongs to, and a sentence in the log;
everything else goes on being served. What is read is believed only after it was checked: by its
checksum where the image has them, and for ranges, order and loops always, because an image may
come from anybody.
"""
