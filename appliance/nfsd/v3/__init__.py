"""NFS version 3 (RFC 1813): protocol.py (types), attributes.py (conversions), procedures.py."""
