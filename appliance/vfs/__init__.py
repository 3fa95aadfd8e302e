"""What a file system is, without NFS: interface, rules, memory, host directory.

interface.py  what a backend implements (start here to write one; memory.py is the example)
errors.py     VfsError
access.py     who may do what, squashing
acl.py        access control lists
user.py       somebody who acts on a file system: every rule about who may do what, once
tree.py       the appliance's own tree: file systems mounted at paths
handles.py    node <-> opaque handle on the wire
memory.py     a complete file system in memory: reference, example and test oracle
hostdir/      a directory of the host
attribute_rules.py  what SETATTR may change, and what changes with it
"""
