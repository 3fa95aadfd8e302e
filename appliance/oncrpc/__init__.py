"""ONC RPC (RFC 5531) over any transport: bytes in, bytes out.

xdr.py          RFC 4506: types declared once, as classes, and compiled to straight-line code
                (by xdr_compiler.py; what each kind of type becomes: xdr_kinds.py, xdr_composed.py)
message.py      rpc_msg, call_body, reply_body
record.py       record marking (RFC 5531 section 11)
auth.py         AUTH_NONE, AUTH_SYS
program.py      a table of procedures, each one typed function
reply_cache.py  answers that are remembered for calls that must not be done twice
server.py       records and datagrams -> calls -> replies
transport.py    what the calls come over
leader.py       the threads: one leads, and serves what it reads
"""
