"""The Internet layer of one host: IPv4 (RFC 791) and IPv6 (RFC 8200).

internet.py     `Internet`: both families, our addresses, routes and paths
addresses.py    what a host is given (HostConfig), and the addresses it has
routes.py       where packets go: longest prefix first
paths.py        the way to each destination that is in use; path.py, what TCP and UDP see of one
link_path.py    what paths of both families share
neighbours.py   who on the link has which MAC address: what ARP and neighbour discovery share
datagram.py     what arrives for TCP and UDP
fragments.py    reassembly
rations.py      how often errors are reported
v4/             IPv4, ARP, ICMP
v6/             IPv6, neighbour discovery, ICMPv6, MLD
"""
