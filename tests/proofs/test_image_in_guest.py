"""An image, served for writing, under the Linux kernel's NFS client and the suites that others
wrote to break file systems. After each, the image is as it has to be."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import StartAppliance, StartGuest
from tests.interop.lab import (
    AGAIN,
    MOUNT,
    MOUNT_IMPATIENTLY,
    SERVER,
    Appliance,
    run,
    wait_until,
)
from tests.proofs.geometry import sound, sound_after_replay

pytestmark = [pytest.mark.root, pytest.mark.guest]

FSX_OPERATIONS = 25_000
FSX_PROCESSES = 4
"""Side by side, since most of the time is waiting for replies."""

STRESSORS = [
    "access", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirmany", "fallocate",
    "fcntl", "filename", "fstat", "getdent", "hdd", "io", "iomix", "mknod", "open", "rename",
    "sync-file", "touch", "utime",
]  # fmt: skip
"""What stress-ng's class "filesystem" has that means something on NFS version 3 without locks.
"link" and "symlink" make 8192 of their kind before they look at the time."""

SIZES = "--dentries 200 --iomix-bytes 16m --hdd-bytes 16m --copy-file-bytes 128m"
INODES = 1 << 18
"""What would fill the image otherwise is kept small, and what cannot be, the files that "dirmany"
makes for as long as it runs, has more inodes than the quickest machine can use: a stressor that
finds the image full gives up, and the suite calls that a failure."""

Guest = Callable[..., str]


def image_with(path: Path, *programs: Path, size: str = "256M", options: str = "") -> Path:
    """An ext4 image as Debian makes it, with some programs in it."""
    tree = path.with_suffix(".tree")
    tree.mkdir()
    for program in programs:
        run("cp", program, tree)
    run("mke2fs", "-q", "-t", "ext4", *options.split(), "-d", tree, path, size)
    return path


def stop_and_judge(server: Appliance, image: Path) -> None:
    server.stop()
    sound(image)


def test_a_hundred_thousand_operations_of_fsx(
    appliance: StartAppliance, guest: Guest, fsx_program: Path, tmp_path: Path
) -> None:
    image = image_with(tmp_path / "fs.img", fsx_program)
    server = appliance("--image", image, pcap=False)
    said = guest(
        f"""
        {MOUNT}
        cp /mnt/fsx /tmp
        for n in $(seq {FSX_PROCESSES}); do
            mkdir /mnt/fsx-$n
            /tmp/fsx -s $n -n {FSX_OPERATIONS} /mnt/fsx-$n >/tmp/said-$n || echo FAILED &
        done
        wait
        cat /tmp/said-*
        """,
        timeout=400,
    )
    assert said.count("as it should be") == FSX_PROCESSES, said
    stop_and_judge(server, image)


def test_dbench_bonnie_and_stress_ng(
    appliance: StartAppliance, start_guest: StartGuest, tmp_path: Path
) -> None:
    """One after the other in one guest; between them the server is stopped, the image judged, and
    the server started again, while the client stays as it is."""
    image = image_with(tmp_path / "fs.img", size="1G", options=f"-N {INODES}")
    server = appliance("--image", image, pcap=False)
    stressors = " ".join(f"--{name} 1" for name in STRESSORS)
    suites = {
        "dbench": "dbench -t 8 -c /usr/share/dbench/client.txt -D $D 2",
        "bonnie": "bonnie++ -q -f -u root -d $D -s 16 -r 8 -n 1",
        "stress": f"stress-ng --verify --temp-path $D --timeout 8 {SIZES} {stressors}",
    }
    running = start_guest(
        MOUNT
        + "".join(
            f"""
            D=/mnt/{name}; mkdir $D; {command} >/tmp/said 2>&1 || {{ cat /tmp/said; exit 1; }}
            cat /tmp/said; sync; echo {name}-DONE
            until [ -e /mnt/{name}-judged ]; do sleep 0.2; done
            """
            for name, command in suites.items()
        ),
        timeout=300,
    )
    for name in suites:
        running.wait_for(f"{name}-DONE")
        stop_and_judge(server, image)
        server.start()
        server.netns.run("nfs-cp", "/etc/hostname", f"nfs://{SERVER}//{name}-judged")
    assert " fail:" not in running.finish()
    stop_and_judge(server, image)


def test_a_tree_is_copied_onto_an_image_and_back(
    appliance: StartAppliance, guest: Guest, tmp_path: Path
) -> None:
    image = image_with(tmp_path / "fs.img")
    server = appliance("--image", image, pcap=False)
    guest(
        f"""
        {MOUNT}
        cp -a /usr/lib/python3.11 /mnt/in
        {AGAIN}
        diff -r --no-dereference /usr/lib/python3.11 /mnt/in
        list() {{ find . -printf '%P|%y|%m|%n|%U|%G|%l|%T@\\n' | grep -v '|d|' | sort; }}
        diff <(cd /usr/lib/python3.11; list) <(cd /mnt/in; list)
        """,
        timeout=200,
    )
    stop_and_judge(server, image)
    tree = tmp_path / "kernels"
    tree.mkdir()
    count = run(
        "unshare", "--mount", "bash", "-c",
        f"mount -o ro,loop {image} {tree} && find {tree}/in -type f | wc -l",
    )  # fmt: skip
    assert int(count) > 400


def test_a_copy_survives_kill_9_of_the_server(
    appliance: StartAppliance, start_guest: StartGuest, tmp_path: Path
) -> None:
    """The image is sound each time; the client only waits, and all of the copy is there."""
    image = image_with(tmp_path / "fs.img")
    server = appliance("--image", image, pcap=False)
    running = start_guest(
        f"""
        {MOUNT_IMPATIENTLY}
        echo START
        cp -a /usr/lib/python3.11 /mnt/in
        sync
        cd /; {AGAIN}
        diff -r --no-dereference /usr/lib/python3.11 /mnt/in
        echo SAME
        """,
        timeout=300,
    )
    running.wait_for("START")
    for _ in range(4):
        wait_until(lambda: server.counters().get("nfs3.create", 0) > 40, 60)
        server.kill()
        sound_after_replay(image, tmp_path / "replayed.img")
        time.sleep(0.3)
        server.start()
    assert running.finish().splitlines()[-1] == "SAME"
    stop_and_judge(server, image)
