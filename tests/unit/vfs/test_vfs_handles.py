"""Handles on the wire: what comes in is what went out, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import limits
from appliance.vfs import handles
from appliance.vfs.errors import Code
from tests.unit.vfs.tools import memory, refused


def test_a_handle_tells_export_file_system_and_node() -> None:
    filesystem = memory(fsid=0xFEDC_BA98_7654_3210)
    export = handles.export_id(b"/export")
    wire = handles.encode(export, filesystem.root())
    assert handles.decode(wire) == (export, filesystem.fsid, filesystem.root().handle)
    assert len(wire) <= limits.HANDLE_BYTES_MAX


def test_exports_have_numbers_of_their_own_that_stay() -> None:
    assert handles.export_id(b"/a") != handles.export_id(b"/b")
    assert handles.export_id(b"123456789") == 0xCBF43926  # the check value of CRC-32


@pytest.mark.parametrize("length", [0, 1, 12, 13, 57, 64])
def test_impossible_lengths_are_bad_handles(length: int) -> None:
    refused(Code.BADHANDLE, lambda: handles.decode(b"\x01" * length))


def test_another_version_is_a_bad_handle() -> None:
    wire = handles.encode(1, memory().root())
    refused(Code.BADHANDLE, lambda: handles.decode(b"\x02" + wire[1:]))


@given(st.binary(max_size=64) | st.binary(min_size=13, max_size=60).map(lambda b: b"\x01" + b))
def test_any_bytes_are_a_handle_or_refused(wire: bytes) -> None:
    if wire[:1] != b"\x01" or not 14 <= len(wire) <= limits.HANDLE_BYTES_MAX:
        refused(Code.BADHANDLE, lambda: handles.decode(wire))
        return
    export, fsid, node = handles.decode(wire)
    assert b"\x01" + export.to_bytes(4, "big") + fsid.to_bytes(8, "big") + node == wire


@given(st.binary(max_size=43))
def test_a_file_system_knows_its_handles_from_others(handle: bytes) -> None:
    filesystem = memory()
    expected = Code.STALE if len(handle) == len(filesystem.root().handle) else Code.BADHANDLE
    if handle != filesystem.root().handle:
        refused(expected, lambda: filesystem.resolve(handle))
