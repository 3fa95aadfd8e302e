"""IPv6 (RFC 8200), neighbour discovery (RFC 4861, 4862), ICMPv6 (RFC 4443), MLD (RFC 3810).

ipv6.py        packets in; what an address of ours needs
path.py        packets out
fragments.py   fragments in
discovery.py   neighbours: who has which MAC address, and whether he is still there
duplicates.py  is an address of ours used by somebody else?
router.py      what routers advertise: prefixes, a default route, the MTU
groups.py      which groups we have joined, told to routers and switches
icmp.py        echo, and errors in both directions
"""
