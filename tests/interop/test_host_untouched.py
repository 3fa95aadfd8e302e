"""One command, one process, and the host knows nothing of it: no address, no port, no mount, no
loop device, no other daemon. (The host is here the network namespace of the test.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.lab import SERVER, Appliance, Namespace, make_image, make_tree, run

pytestmark = pytest.mark.root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree")
    make_image(tmp_path / "fs.img", tmp_path / "tree")
    return tmp_path / "fs.img"


@pytest.fixture
def plain_netns(netns: Namespace) -> Namespace:
    """A namespace as a user has it: nothing is set up for us."""
    netns.ip("link delete br0")
    return netns


@pytest.fixture
def server(plain_netns: Namespace, tmp_path: Path, image: Path) -> Iterator[Appliance]:
    """rumpnfsd with no more than it needs: it makes its own TAP."""
    appliance = Appliance(plain_netns, tmp_path, "--image", image)
    plain_netns.run("ping", "-c", "1", "-W", "1", SERVER)  # something for the judge to look at
    yield appliance
    appliance.stop()
    appliance.judge()


def test_the_first_line_says_what_is_served(server: Appliance) -> None:
    assert server.stdout.read_text().startswith(f"ready: {SERVER} (tap0) exports: /")
    notes = server.said().splitlines()
    assert all(note.startswith("note: ") for note in notes)
    assert any("exported to everybody" in note for note in notes)


def test_the_address_is_not_the_hosts(server: Appliance) -> None:
    netns = server.netns
    interfaces = json.loads(netns.ip("-json address show"))
    addresses = {a["local"] for interface in interfaces for a in interface["addr_info"]}
    assert "10.0.0.1" in addresses  # the host's side of the TAP
    assert SERVER not in addresses
    assert "2 received" in netns.run("ping", "-c", "2", "-i", "0.2", SERVER)
    [neighbour] = json.loads(netns.ip("-json neighbour show"))
    own = {interface["address"] for interface in interfaces if interface["ifname"] != "lo"}
    assert neighbour["dst"] == SERVER
    assert neighbour["lladdr"] not in own


def test_no_port_of_the_host_is_used(server: Appliance) -> None:
    assert server.netns.run("rpcinfo", "-p", SERVER)  # it serves
    assert server.netns.run("ss", "-Hltnup") == ""
    sockets = [
        fd for fd in Path(f"/proc/{server.pid}/fd").iterdir() if "socket" in str(fd.readlink())
    ]
    assert not sockets


def test_no_loop_device_and_no_mount(plain_netns: Namespace, tmp_path: Path, image: Path) -> None:
    def of_the_host() -> tuple[str, str, str]:
        return run("losetup", "-a"), Path("/proc/mounts").read_text(), run("findmnt", "-rn")

    before = of_the_host()
    appliance = Appliance(plain_netns, tmp_path, "--image", image)
    assert plain_netns.run("nfs-cat", f"nfs://{SERVER}/sub/deeper/still/leaf") == "leaf\n"
    during = of_the_host()
    own_mounts = Path(f"/proc/{appliance.pid}/mounts").read_text()
    appliance.stop()
    assert before == during == of_the_host()
    assert str(image) not in own_mounts
    loops = [line for line in own_mounts.splitlines() if line.startswith("/dev/loop")]
    assert set(loops) <= set(before[1].splitlines())


def test_it_is_one_process_with_a_thread_for_each_service(server: Appliance) -> None:
    tasks = Path(f"/proc/{server.pid}/task")
    main = (tasks / str(server.pid) / "comm").read_text().strip()
    services = {"journal", "mountd", *(f"nfsd-{n}" for n in range(4)), "rpcbind", "ticker"}
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()]
    assert sorted(names) == sorted([main, *services])
    listed = run("ps", "-T", "-o", "comm=", "-p", str(server.pid)).split()
    assert set(listed) == {main, *services}
    assert all(not (task / "children").read_text() for task in tasks.iterdir())


def test_nothing_is_left_when_it_stops(plain_netns: Namespace, tmp_path: Path, image: Path) -> None:
    content = hashlib.sha256(image.read_bytes()).hexdigest()
    before = plain_netns.ip("-brief link show")
    appliance = Appliance(plain_netns, tmp_path, "--image", f"{image},ro")
    plain_netns.run("nfs-ls", f"nfs://{SERVER}/")
    appliance.stop()
    assert plain_netns.ip("-brief link show") == before
    assert plain_netns.run("ping", "-c", "1", "-W", "1", SERVER, expect=None)
    assert hashlib.sha256(image.read_bytes()).hexdigest() == content


def test_the_exports_of_the_host_have_no_effect(server: Appliance) -> None:
    opened = run("ls", "-l", f"/proc/{server.pid}/fd")
    assert "/etc/exports" not in opened
    assert "/ " in server.netns.run("showmount", "-e", SERVER)
