"""A whole NFS service in one process, with its own TCP/IP stack and its own IP address.

Start reading in ARCHITECTURE.md; the parts are joined in machine.py.
"""
