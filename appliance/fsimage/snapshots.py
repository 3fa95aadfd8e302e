"""Earlier states of a device, kept by name: what an overlay offers to the file system above it.

The file system calls these at a commit boundary, while nothing is being written: a state is then
exactly what a crash at that moment would leave, so going back to one is a recovery, and needs no
code of its own in the file system.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from appliance import image_limits
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import Snapshot


class BlockSnapshots(Protocol):
    """The states of one device. A method that raises has changed nothing."""

    def create(self, name: str, created_ns: int) -> None:
        """Keep the present state, durable if the device is. EXIST, INVAL, NOSPC."""

    def names(self) -> list[Snapshot]:
        """What is kept, the oldest first."""

    def rollback(self, name: str) -> None:
        """Make a kept state the present one; it stays kept. NOENT."""

    def delete(self, name: str) -> None:
        """Keep a state no longer. NOENT."""


@runtime_checkable
class KeepsSnapshots(Protocol):
    """A device that can keep states of itself."""

    snapshots: BlockSnapshots


def check_new_name(name: str, taken: list[Snapshot]) -> None:
    """VfsError if a snapshot of that name cannot be added to those there are."""
    if not name or not name.isprintable() or name != name.strip() or "/" in name:
        raise VfsError(Code.INVAL, f"{name!r} is no name for a snapshot")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise VfsError(Code.INVAL, f"{name!r} is no name for a snapshot") from None
    if length > image_limits.SNAPSHOT_NAME_BYTES_MAX:
        raise VfsError(
            Code.INVAL,
            f"a name of more than {image_limits.SNAPSHOT_NAME_BYTES_MAX} bytes for a snapshot",
        )
    if any(kept.name == name for kept in taken):
        raise VfsError(Code.EXIST, f'there is a snapshot "{name}" already')
    if len(taken) >= image_limits.SNAPSHOTS_MAX:
        raise VfsError(Code.NOSPC, f"there are {len(taken)} snapshots already: delete one first")


def unknown(name: str, kept: list[Snapshot]) -> VfsError:
    """The error for a name that nothing has."""
    names = ", ".join(each.name for each in kept) or "none"
    return VfsError(Code.NOENT, f'there is no snapshot "{name}" (there is: {names})')
