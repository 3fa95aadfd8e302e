"""nfsd: the file service. service.py is what the versions share, v3/ is RFC 1813."""
