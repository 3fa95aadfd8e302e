"""Internet Protocol version 4 (RFC 791), ARP (RFC 826, 5227), ICMP (RFC 792)."""
