"""A TCP/IP stack: frames in, frames out. No thread, no clock, no lock of its own, below
loop.py and sockets/.

wire/     formats: parse, emit, str; no state
link/     where frames come from and go to: the TAP; a recorder as a decorator
ip/       addresses, routes, paths; v4/ (ARP, ICMP) and v6/ (discovery, ICMPv6, MLD); fragments
udp.py    RFC 768
tcp/      RFC 9293: one connection, its two halves, its timers, listeners
timers.py deadlines, one heap
loop.py   for a stack on its own: the thread that runs it (the appliance has its leader)
sockets/  the standard library's sockets on a stack
stack.py  one host: `receive(frame, now)`, `flush(now)`, `expire(now)`, `next_deadline`
"""
