"""Extended attributes and lists of an image, as our tests compare them: by path, in hexadecimal."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.ext4.filesystem import Ext4, open_ext4
from appliance.vfs.access import Credential
from appliance.vfs.acl import Acl
from appliance.vfs.errors import Code, VfsError
from appliance.vfs.interface import FileSystem, Node, SetAcl, SetAttributes
from appliance.vfs.user import User
from tests.unit.fsimage.ext4_images import listing
from tests.unit.vfs.tools import HandClock

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"

Change = tuple[str, str, str | None]
"""Path, name and value of an attribute, or None to remove it."""

SUPERUSER = User(Credential(0, 0), clock=HandClock())


def open_rw(image: Path) -> Ext4:
    return open_ext4(FileDevice(image, read_only=False), "image", durability=Durability.PROCESS)


def xattrs(filesystem: FileSystem) -> dict[str, dict[str, Any]]:
    """What the kernel says through `xattrs` of tests/interop/loop_worker.py."""
    return {
        entry.name.decode(): look(filesystem.root().lookup(entry.name))
        for entry in listing(filesystem.root())
    }


def look(node: Node) -> dict[str, Any]:
    its = node.attributes()
    values = {name.decode(): node.xattr(name).hex() for name in node.xattrs()}
    for name, acl in ((ACCESS, its.acl), (DEFAULT, its.default_acl)):
        if acl is not None:
            values[name] = acl.to_xattr().hex()
    return {"mode": its.mode, "used": its.used, "xattrs": values}


def change(filesystem: FileSystem, path: str, name: str, value: str | None) -> bool:
    """Make a change, on a file that is made if need be; whether that could be done."""
    root = filesystem.root()
    try:
        node = root.lookup(path.encode())
    except VfsError:
        node = SUPERUSER.create(root, path.encode())
    try:
        if name in (ACCESS, DEFAULT):
            _change_list(node, name, value)
        elif value is None:
            node.remove_xattr(name.encode())
        else:
            node.set_xattr(name.encode(), bytes.fromhex(value))
    except VfsError as error:
        if error.code not in (Code.NOSPC, Code.NOENT):
            raise
        return False
    return True


def _change_list(node: Node, name: str, value: str | None) -> None:
    acl = SetAcl.NONE if value is None else Acl.from_xattr(bytes.fromhex(value))
    wishes = SetAttributes(acl=acl) if name == ACCESS else SetAttributes(default_acl=acl)
    SUPERUSER.set_attributes(node, wishes)


def random_changes(chance: Random, count: int) -> list[Change]:
    """Changes of a few attributes of a few files: small and large ones, lists among them."""
    return [_random_change(chance) for _ in range(count)]


def _random_change(chance: Random) -> Change:
    path = f"file-{chance.randrange(8)}"
    kind = chance.randrange(10)
    if kind == 0:
        return path, ACCESS, None if chance.random() < 0.1 else random_list(chance)
    prefix = chance.choice(["user.", "user.", "trusted.", "security."])
    name = prefix + chance.choice(["a", "b", "colour", "\u00e4\u6f22", "n" * 200, "m" * 37])
    if kind < 3:
        return path, name, None
    length = chance.choice([0, 1, 3, 4, 20, 21, 60, 100, 300, 900, 2000, 3900, 4200])
    return path, name, chance.randbytes(length).hex()


def random_list(chance: Random) -> str:
    uids = sorted(chance.sample(range(1000, 1400), chance.choice([1, 2, 3, 8, 120])))
    gids = sorted(chance.sample(range(50, 90), chance.randrange(4)))
    owner, group, other, mask = (chance.randrange(8) for _ in range(4))
    users = tuple((uid, chance.randrange(8)) for uid in uids)
    groups = tuple((gid, chance.randrange(8)) for gid in gids)
    return Acl(owner, group, other, mask, users, groups).to_xattr().hex()
