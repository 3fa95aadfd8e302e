"""An address from a DHCP server (RFC 2131): kept, renewed, given back, and lost in order.

states.py has figure 5 of the RFC as data, lease.py what a server's answer means, requests.py which
message says what (table 5), client.py the machine that goes from state to state.
"""
