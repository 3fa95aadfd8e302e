"""A real server on images with overlays: what clients changed is where it should be, snapshots are
taken and rolled back while it serves, and what the kernel has mounted is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import main
from tests.interop.conftest import StartAppliance
from tests.interop.lab import SERVER, TOP, Appliance, make_image, make_tree, run

pytestmark = pytest.mark.root

URL = f"nfs://{SERVER}/"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    make_tree(tmp_path / "tree")
    make_image(tmp_path / "fs.img", tmp_path / "tree")
    return tmp_path / "fs.img"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put(server: Appliance, folder: Path, name: str, contents: str) -> None:
    (folder / "upload").write_text(contents)
    server.netns.run("nfs-cp", folder / "upload", f"{URL}/{name}")


def get(server: Appliance, name: str) -> str:
    return server.netns.run("nfs-cat", f"{URL}/{name}")


def names(server: Appliance) -> set[str]:
    said = server.netns.run("nfs-ls", URL)
    return {line.split(maxsplit=5)[5] for line in said.splitlines()}


def rumpctl(folder: Path, *words: str, expect: int = 0) -> str:
    """As a user runs it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("rumpctl"), "--control", folder / "control", *words],
        capture_output=True, text=True, cwd=TOP, check=False,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return done.stdout or done.stderr


def test_changes_in_a_file_survive_a_kill_and_are_merged(
    appliance: StartAppliance, image: Path, tmp_path: Path
) -> None:
    before = digest(image)
    server = appliance("--image", f"{image},overlay={tmp_path / 'changes'}")
    put(server, tmp_path, "kept", "kept over a kill\n")
    server.kill()
    server.start()
    assert get(server, "kept") == "kept over a kill\n"
    put(server, tmp_path, "more", "and more\n")
    server.stop()
    assert digest(image) == before
    assert main(["merge", str(image), str(tmp_path / "changes")]) == 0
    run("e2fsck", "-fn", image)
    assert run("debugfs", "-R", "cat /more", image).endswith("and more\n")
    server._words[-1] = str(image)  # and now without the overlay
    server.start()
    assert get(server, "kept") == "kept over a kill\n"


def test_changes_in_memory_are_gone(appliance: StartAppliance, image: Path, tmp_path: Path) -> None:
    before = digest(image)
    server = appliance("--image", f"{image},overlay")
    assert "changes to" in server.said() and "kept in memory" in server.said()
    put(server, tmp_path, "gone", "soon gone\n")
    assert get(server, "gone") == "soon gone\n"
    server.stop()
    assert digest(image) == before
    server.start()
    assert "gone" not in names(server)


def test_two_partitions_of_a_disk_are_one_tree(
    appliance: StartAppliance, image: Path, tmp_path: Path
) -> None:
    """Both written, with one killed server between them and e2fsck."""
    disk, at = tmp_path / "disk.img", {1: 1 << 20, 2: 80 << 20}
    size = image.stat().st_size
    run("truncate", "-s", "160M", disk)
    table = "".join(f"start={start >> 9}, size={size >> 9}\n" for start in at.values())
    subprocess.run(["sfdisk", "-q", disk], input=f"label: dos\n{table}", text=True, check=True)
    for offset in at.values():
        run("tune2fs", "-f", "-U", "random", image)
        write_part(image, disk, offset)
    server = appliance("--image", f"{disk},partition=2", "--image", f"{disk}@/sub,partition=1")
    put(server, tmp_path, "new", "in the second\n")
    server.kill()
    server.start()
    put(server, tmp_path, "sub/new", "in the first\n")
    server.stop()
    for number, words in ((1, "in the first\n"), (2, "in the second\n")):
        read_part(disk, at[number], size, tmp_path / "part")
        run("e2fsck", "-fn", tmp_path / "part")
        assert run("debugfs", "-R", "cat /new", tmp_path / "part").endswith(words)


def write_part(part: Path, disk: Path, offset: int) -> None:
    to = [f"of={disk}", "bs=1M", f"seek={offset >> 20}", "conv=notrunc,sparse"]
    run("dd", f"if={part}", *to, "status=none")


def read_part(disk: Path, offset: int, size: int, part: Path) -> None:
    run("dd", f"if={disk}", f"of={part}", "bs=1M", f"skip={offset >> 20}", "status=none")
    run("truncate", "-s", str(size), part)


def test_a_compressed_image_is_served(
    appliance: StartAppliance, image: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "fs.img.gz"
    packed.write_bytes(gzip.compress(image.read_bytes(), 1))
    server = appliance("--image", packed)
    assert get(server, "hello") == "hello, world\n"
    assert "read-only: changes to what was decompressed would be lost" in server.said()
    assert server.said().count("read-only") == 1
    with pytest.raises(AssertionError, match="ROFS"):
        put(server, tmp_path, "new", "new")


@pytest.mark.parametrize("overlay", ["overlay", "overlay=changes"])
def test_snapshots_while_it_serves(
    appliance: StartAppliance, image: Path, tmp_path: Path, overlay: str
) -> None:
    overlay = overlay.replace("=", f"={tmp_path}/")
    server = appliance("--image", f"{image},{overlay}", "--control", tmp_path / "control")
    assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o600
    for name in ("clean", "changed"):
        assert rumpctl(tmp_path, "snapshot", "create", name) == ""
        put(server, tmp_path, f"after-{name}", name)
    threads = Path(f"/proc/{server.pid}/task").iterdir()
    assert "control\n" in {(thread / "comm").read_text() for thread in threads}
    said = rumpctl(tmp_path, "snapshot", "create", "clean", expect=1)
    assert said == 'error: there is a snapshot "clean" already\n'
    listed = json.loads(rumpctl(tmp_path, "--json", "snapshot", "list"))
    assert [each["name"] for each in listed] == ["clean", "changed"]
    rumpctl(tmp_path, "snapshot", "rollback", "clean")
    assert not names(server) & {"after-clean", "after-changed"}
    rumpctl(tmp_path, "snapshot", "rollback", "changed", "--image", "/")
    assert names(server) & {"after-clean", "after-changed"} == {"after-clean"}
    assert get(server, "after-clean") == "clean"
    put(server, tmp_path, "on-it-goes", "on")
    rumpctl(tmp_path, "snapshot", "delete", "clean")
    said = rumpctl(tmp_path, "snapshot", "rollback", "clean", expect=1)
    assert said == 'error: there is no snapshot "clean" (there is: changed)\n'
    assert get(server, "on-it-goes") == "on"
    server.stop()
    assert not (tmp_path / "control").exists()


def test_without_an_overlay_rumpctl_says_what_to_do(
    appliance: StartAppliance, image: Path, tmp_path: Path
) -> None:
    server = appliance("--image", image, "--control", tmp_path / "control")
    assert "hello" in names(server)  # something for the judge to look at
    said = rumpctl(tmp_path, "snapshot", "create", "x", expect=1)
    assert "without an overlay" in said and "hint: " in said and ",overlay" in said


def test_a_control_socket_that_a_kill_left_is_replaced(
    appliance: StartAppliance, image: Path, tmp_path: Path
) -> None:
    server = appliance("--image", f"{image},overlay", "--control", tmp_path / "control")
    assert "hello" in names(server)
    server.kill()
    assert (tmp_path / "control").exists()
    server.start()
    assert rumpctl(tmp_path, "snapshot", "list") == ""
    assert "hello" in names(server)


@pytest.mark.parametrize("sync", ["full", "process", "lazy"])
def test_every_mode_unmounts_clean(
    appliance: StartAppliance, image: Path, tmp_path: Path, sync: str
) -> None:
    server = appliance("--image", image, "--sync", sync)
    put(server, tmp_path, "new", sync)
    server.stop()
    run("e2fsck", "-fn", image)
    assert run("debugfs", "-R", "cat /new", image).endswith(sync)


def test_two_servers_do_not_write_to_one_image(
    appliance: StartAppliance, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = appliance("--image", image)
    words = ["--ip", "10.0.0.6", "--tap", "never-made", "--memory", "1M", "--image"]
    for spec in (f"{image}@/x", f"{image}@/x,ro", f"{image}@/x,overlay"):
        assert main([*words, spec]) == 1
        assert "another process" in capsys.readouterr().err
    assert "hello" in names(server)


# --- what the kernel has ----------------------------------------------------------


def test_a_device_that_is_write_protected_is_refused(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root can open it for writing: the first write would fail."""
    name = run("losetup", "--read-only", "--find", "--show", image).strip()
    try:
        assert main(["--ip", "10.0.0.6", "--tap", "never-made", "--image", name]) == 1
    finally:
        run("losetup", "--detach", name)
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"error: {name} is write-protected"
    assert ",ro" in hint and ",overlay" in hint


MOUNTED = """
import sys
from appliance.fsimage.device import FileDevice
from appliance.fsimage.errors import ImageError
try:
    FileDevice(sys.argv[1], read_only=False)
except ImageError as error:
    print(error)
    print(error.hint)
"""


@pytest.fixture
def loop(image: Path) -> Iterator[str]:
    name = run("losetup", "--find", "--show", image).strip()
    yield name
    run("losetup", "--detach", name)


def test_a_device_that_the_kernel_has_mounted_is_refused(loop: str, image: Path) -> None:
    """In a mount namespace of its own, which ends with it."""
    script = f"""
    mount --make-rprivate /
    {sys.executable} -c '{MOUNTED}' {loop}
    mkdir {image.parent}/mnt
    mount -o ro {loop} {image.parent}/mnt
    {sys.executable} -c '{MOUNTED}' {loop}
    umount {image.parent}/mnt
    {sys.executable} -c '{MOUNTED}' {image}
    """
    shell = shutil.which("bash")
    assert shell
    done = subprocess.run(
        ["unshare", "-m", shell, "-ec", script], capture_output=True, text=True, cwd=TOP
    )
    assert done.returncode == 0, done.stderr
    mounted, hint, attached, remedy = done.stdout.splitlines()
    assert mounted == f"{loop} is in use by the kernel, mounted at {image.parent}/mnt"
    assert hint == "unmount it"
    assert attached == f"{image} is in use by the kernel, as {loop}"
    assert remedy == f"unmount it, then: losetup --detach {loop}"
