"""IPv4 (RFC 791), ARP (RFC 826, 5227), ICMP (RFC 792).

ipv4.py       packets in
path.py       packets out
fragments.py  fragments in
arp.py        neighbours
claim.py      our claim to an address of ours
icmp.py       echo, and errors in both directions
subnet.py     which addresses mean a host, and which everybody
"""
