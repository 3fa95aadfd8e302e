"""mountd: hands out the file handles with which everything else begins.

protocol.py   the types of the MOUNT protocol
service.py    the service, and the procedures of its three versions
"""
