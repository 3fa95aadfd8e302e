"""Sockets on the stack, with the standard library's interface, for programs that know nothing of
it.

module.py       start here: `Sockets`, the module as one stack has it, and `installed`
facade.py       `Socket`: the calls of the standard library
tls.py          what ssl.SSLContext.wrap_socket makes of one
endpoint.py     what a descriptor stands for, and how threads wait for it:
stream.py       a TCP connection, listening.py a port that takes them, datagrams.py UDP
ports.py        who is bound to which port
options.py      setsockopt and getsockopt; addresses.py, errors.py: as the kernel has them
readiness.py    the descriptor for select, poll and epoll
runner.py       what sockets want of whoever runs the stack (netstack/loop.py)
"""

from appliance.netstack.sockets.module import Sockets, installed

__all__ = ["Sockets", "installed"]
