"""Memory for data that is about to be read."""

from __future__ import annotations

import ctypes
from typing import Final

_make: Final = ctypes.pythonapi.PyByteArray_FromStringAndSize
_make.argtypes = ctypes.c_void_p, ctypes.c_ssize_t
_make.restype = ctypes.py_object


def unset_bytes(count: int) -> bytearray:
    """So many bytes that may say anything: whoever asks for them fills them all, or passes on no
    more than was filled.

    `bytearray(count)` would make them zero first: for a READ of 64 KiB, a twentieth of its time.
    """
    made: bytearray = _make(None, count)
    return made
