"""NFS version 3 (RFC 1813).

protocol.py      the types, in the RFC's order
procedures.py    the 22 procedures, in the RFC's order
call.py          what a procedure gets: handles to nodes, rights, steps that change something
wcc.py           attributes before and after a change, and making it durable
attributes.py    attributes of the VFS <-> fattr3, sattr3, nfsstat3
directories.py   how much of a directory fits into a reply
"""
