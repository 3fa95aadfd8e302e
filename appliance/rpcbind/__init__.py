"""rpcbind: tells clients at which address a program can be called (RFC 1833)."""
