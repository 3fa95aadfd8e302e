"""ext2, ext3 and ext4, from the published on-disk format, in its names.

    record.py      how an on-disk record is declared        layout.py     the records
    crc.py         the checksums                            cache.py      bounded memories
    superblock.py  geometry and features                    volume.py     verified metadata blocks
    inode.py       one inode                                extents.py    where its blocks are
    hash.py        names -> hashes                          xattr.py      what else an inode holds
    directory.py   blocks of entries                        htree.py      the index of a directory
    journal.py     replaying what a crash left behind       filesystem.py the vfs interface
    check/         whether all of it is sound

Reading takes no lock. What is in a cache is never changed, only replaced, so whoever got hold of
it may use it; two threads that miss at the same time do the same work twice.

What is found damaged is an I/O error of the object that it belongs to, and a sentence in the log;
everything else goes on being served. What is read is believed only after it was checked: by its
checksum where the image has them, and for ranges, order and loops always, because an image may
come from anybody.
"""
