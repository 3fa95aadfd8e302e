"""nfsd: the file service.

service.py   what all protocol versions share: the state, and the programs to register
callers.py   who calls, and what it may do with which handle
v3/          NFS version 3
"""
