"""The formats on the wire: parse, emit, str. No state, no clock."""
