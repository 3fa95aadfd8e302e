"""The Linux kernel's NFS client, in a virtual machine, does what its users do all day."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.interop.conftest import StartAppliance, StartGuest
from tests.interop.lab import (
    AGAIN,
    GUEST,
    MOUNT,
    MOUNT_IMPATIENTLY,
    SERVER,
    checksums,
    make_image,
    make_tree,
    run,
    wait_until,
)

pytestmark = [pytest.mark.root, pytest.mark.guest]

LIST = r"find . -path ./lost+found -prune -o -printf '%P|%y|%m|%n|%U|%G|%s|%l|%i|%T@\n' | sort"
SUMS = "find . -type f -path './*' -exec sha256sum {} + | sort"
FULL = "df -B1 --output=size,used . | tail -1"
LEFT = "df -B1 --output=avail . | tail -1"

Guest = Callable[..., str]


def between(text: str, start: str, end: str) -> str:
    """The lines that a script printed between two of its marks."""
    return text.partition(f"{start}\n")[2].partition(f"{end}\n")[0]


def as_the_kernel_sees(image: Path, folder: Path, script: str) -> str:
    """What `script` prints in the image, mounted through a loop device, in a mount namespace."""
    folder.mkdir()
    mount = f"mount -o ro,loop,noload {image} {folder} && cd {folder}"
    return run("unshare", "--mount", "bash", "-c", f"{mount} && {script}")


def test_an_image_looks_as_it_does_to_the_kernels_own_ext4(
    appliance: StartAppliance, guest: Guest, tmp_path: Path
) -> None:
    make_tree(tmp_path / "tree")
    image = tmp_path / "fs.img"
    make_image(image, tmp_path / "tree")
    script = f"echo LIST; {LIST}; echo SUMS; {SUMS}; echo FULL; {FULL}; echo END"
    wanted = as_the_kernel_sees(image, tmp_path / "mnt", script)
    appliance("--image", f"{image},ro")
    # The client counts what is free in units of its wsize: make them those of ext4.
    mount = MOUNT.replace("nolock", "nolock,wsize=4096")
    said = guest(f"{mount}; cd /mnt; {script}; {LEFT}")
    for start, end in (("LIST", "SUMS"), ("SUMS", "FULL"), ("FULL", "END")):
        assert between(said, start, end).splitlines() == between(wanted, start, end).splitlines()
    assert len(between(said, "SUMS", "FULL").splitlines()) > 3000
    # What root keeps for himself is not available. (ext4 in the kernel keeps 2 % more in memory.)
    told = dict(re.findall(r"^(.*?): +(\d+)$", run("dumpe2fs", "-h", image), re.MULTILINE))
    blocks = int(told["Free blocks"]) - int(told["Reserved block count"])
    assert int(said.split()[-1]) == blocks * 4096


def test_what_is_immutable_in_an_image_stays_so(
    appliance: StartAppliance, guest: Guest, tmp_path: Path
) -> None:
    """As with chattr +i, and +a for the directory: not even root of the client gets around it."""
    image = tmp_path / "fs.img"
    (tmp_path / "tree/logs").mkdir(parents=True)
    (tmp_path / "tree/file").write_text("kept\n")
    (tmp_path / "tree/logs/yesterday").write_text("kept-too\n")
    make_image(image, tmp_path / "tree")
    for path, flags in (("/file", 0x80010), ("/logs", 0x80020)):
        run("debugfs", "-w", "-R", f"set_inode_field {path} flags {flags:#x}", image)
    appliance("--image", image)
    said = guest(f"""
        {MOUNT}
        cd /mnt
        try() {{ "$@" 2>&1 && echo DONE || true; }}
        try rm file
        try mv file elsewhere
        try ln file another
        try chmod 777 file
        try touch file
        try rm logs/yesterday
        try mv logs/yesterday .
        try rm -r logs
        try sh -c 'echo x >file'
        echo new >logs/today && cat file logs/yesterday logs/today
    """)
    assert "DONE" not in said
    # What is to be opened for writing first, the client refuses on its own: it asked with ACCESS.
    assert said.count("Operation not permitted") == 7, said
    assert said.count("Permission denied") == 2, said
    assert said.split()[-3:] == ["kept", "kept-too", "new"]


@pytest.mark.parametrize("kind", ["--memory", "--directory"])
def test_a_source_tree_is_copied_in_and_out(
    appliance: StartAppliance, guest: Guest, tmp_path: Path, kind: str
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    appliance(kind, "256M" if kind == "--memory" else served)
    said = guest(f"""
        {MOUNT}
        cp -a /usr/lib/python3.11 /mnt/in
        {AGAIN}
        diff -r --no-dereference /usr/lib/python3.11 /mnt/in
        cp -a /mnt/in /tmp/out
        diff -r --no-dereference /usr/lib/python3.11 /tmp/out
        list() {{ find . -printf '%P|%y|%m|%n|%U|%G|%l|%T@\\n' | grep -v '|d|' | sort; }}
        diff <(cd /usr/lib/python3.11; list) <(cd /mnt/in; list)
        cd /mnt/in; echo SUMS; {SUMS}; echo END
    """)
    sums = between(said, "SUMS", "END").splitlines()
    assert len(sums) > 500
    if kind == "--directory":
        on_host = checksums(served / "in")
        assert {line[66:].removeprefix("./"): line[:64] for line in sums} == on_host


@pytest.mark.parametrize("kind", ["--memory", "--directory"])
def test_ten_thousand_files_in_one_directory(
    appliance: StartAppliance, guest: Guest, tmp_path: Path, kind: str
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    appliance(kind, "256M" if kind == "--memory" else served)
    said = guest(
        f"""
        {MOUNT}
        mkdir /mnt/many; cd /mnt/many
        python3 -c 'for n in range(10000): open(f"file-{{n:05}}", "w").close()'
        cd /; {AGAIN}
        ls -f /mnt/many | sort >/tmp/names
        (echo .; echo ..; seq -f 'file-%05g' 0 9999) | sort | diff - /tmp/names
        # Delete while listing: what stays is told exactly once.
        cd /; {AGAIN}
        python3 - <<'END'
import os
seen = []
with os.scandir("/mnt/many") as entries:
    for entry in entries:
        seen.append(entry.name)
        number = int(entry.name[5:])
        if number % 2:
            os.unlink(f"/mnt/many/{{entry.name}}")
assert len(seen) == len(set(seen))
stayed = {{name for name in seen if int(name[5:]) % 2 == 0}}
assert stayed == {{f"file-{{n:05}}" for n in range(0, 10000, 2)}}
END
        echo LEFT $(ls /mnt/many | wc -l)
        rm -r /mnt/many
        echo AFTER $(ls -A /mnt | wc -l)
        """,
        timeout=300,
    )
    assert "LEFT 5000" in said
    assert "AFTER 0" in said


def test_a_gigabyte_goes_in_and_comes_out(
    appliance: StartAppliance, guest: Guest, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    appliance("--directory", served, pcap=False)
    said = guest(
        f"""
        {MOUNT}
        size=$((1 << 30))
        seq 1000000000 | head -c $size >/mnt/big || [ $? = 141 ]
        sync; {AGAIN}
        stat -c 'SIZE %s' /mnt/big
        echo "SUM $(md5sum </mnt/big)"
        """,
        timeout=400,
    )
    assert f"SIZE {1 << 30}" in said
    on_host = run("md5sum", served / "big").split()[0]
    assert f"SUM {on_host}" in said
    assert (served / "big").stat().st_size == 1 << 30


def test_a_file_is_renamed_and_deleted_under_its_reader(
    appliance: StartAppliance, guest: Guest, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_bytes(b"0123456789abcdef" * 65536)
    appliance("--directory", served)
    said = guest(f"""
        {MOUNT}
        exec 3</mnt/file
        head -c 16 <&3
        mv /mnt/file /mnt/other
        echo 3 >/proc/sys/vm/drop_caches
        echo; cat <&3 | wc -c
        exec 3</mnt/other
        rm /mnt/other
        ls -A /mnt | grep -c '^[.]nfs'
        echo 3 >/proc/sys/vm/drop_caches
        cat <&3 | wc -c
        exec 3<&-
        ls -A /mnt | wc -l
    """)
    size = 16 * 65536
    _, rest, hidden, whole, left = said.split()[-5:]
    assert "0123456789abcdef" in said
    # head reads ahead by a block: the rest is what the open file has after it.
    assert 0 < int(rest) < size
    assert (int(hidden), int(whole), int(left)) == (1, size, 0)


def test_a_file_that_is_gone_is_stale(
    appliance: StartAppliance, start_guest: StartGuest, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "file").write_bytes(bytes(1 << 20))
    appliance("--directory", served)
    running = start_guest(f"""
        {MOUNT}
        exec 3</mnt/file
        echo OPEN
        while [ -e /mnt/file ]; do sleep 0.2; echo 3 >/proc/sys/vm/drop_caches; done
        cat <&3 2>&1 | tail -1 || true
    """)
    running.wait_for("OPEN")
    (served / "file").unlink()
    assert "Stale file handle" in running.finish()


def test_the_client_goes_on_after_the_server_was_killed(
    appliance: StartAppliance, start_guest: StartGuest, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    server = appliance("--directory", served)
    running = start_guest(
        f"""
        {MOUNT_IMPATIENTLY}
        echo START
        for n in $(seq 1 300); do echo "$n" >/mnt/file-$n; done &
        seq 4000000 >/mnt/big
        sync
        wait
        echo WRITTEN
        cd /; {AGAIN}
        seq 4000000 | cmp - /mnt/big
        for n in $(seq 1 300); do [ "$(cat /mnt/file-$n)" = "$n" ]; done
        echo SAME
        """,
        timeout=240,
    )
    running.wait_for("START")
    for _ in range(2):
        wait_until(lambda: server.counters().get("nfs3.write", 0) > 50, 60)
        server.kill()
        time.sleep(0.5)
        server.start()
    assert running.finish().splitlines()[-1] == "SAME"
    numbers = {f"file-{n}": f"{n}\n" for n in range(1, 301)}
    assert {f.name: f.read_text() for f in served.glob("file-*")} == numbers


def test_a_reload_disturbs_nobody(
    appliance: StartAppliance, start_guest: StartGuest, tmp_path: Path
) -> None:
    exports = tmp_path / "exports"
    exports.write_text("/ 10.0.0.0/24(rw,no_root_squash)\n")
    server = appliance("--memory", "64M", "--exports", exports)
    running = start_guest(f"""
        {MOUNT}
        echo START
        end=$((SECONDS + 12))
        while [ $SECONDS -lt $end ]; do
            echo x >/mnt/a; mv /mnt/a /mnt/b; ls -l /mnt >/dev/null; rm /mnt/b
        done
        echo DONE
    """)
    running.wait_for("START")
    for number in range(100):
        exports.write_text(f"/ {GUEST}(rw,no_root_squash)\n/ 10.0.0.{number}(ro)\n")
        server.signal(signal.SIGHUP)
        time.sleep(0.1)
    assert running.finish().splitlines()[-1] == "DONE"


def test_a_reload_takes_rights_away_and_gives_them(
    appliance: StartAppliance, start_guest: StartGuest, tmp_path: Path
) -> None:
    exports = tmp_path / "exports"
    exports.write_text("/ *(rw,no_root_squash)\n")
    server = appliance("--memory", "64M", "--exports", exports)
    wait_for_change = "until eval $TRY; do sleep 0.1; done"
    running = start_guest(f"""
        {MOUNT}
        touch /mnt/a; echo WRITABLE
        TRY='! touch /mnt/b 2>/tmp/why'; {wait_for_change}; cat /tmp/why; echo READ-ONLY
        TRY='touch /mnt/c 2>/dev/null'; {wait_for_change}; echo WRITABLE-AGAIN
    """)
    running.wait_for("WRITABLE")
    exports.write_text("/ *(ro,no_root_squash)\n")
    server.signal(signal.SIGHUP)
    running.wait_for("READ-ONLY")
    assert "Read-only file system" in running.output
    exports.write_text("/ *(rw,nonsense)\n")  # leaves everything as it is
    server.signal(signal.SIGHUP)
    wait_until(lambda: f'{exports}:1: unknown option "nonsense"' in server.said())
    server.netns.run("nfs-ls", f"nfs://{SERVER}/")
    exports.write_text("/ *(rw,no_root_squash)\n")
    server.signal(signal.SIGHUP)
    running.finish()


EXPORTS = """\
/squashed   *(rw)
/root       *(rw,no_root_squash)
/all        *(rw,all_squash,anonuid=1234,anongid=5678)
/read       *(ro,no_root_squash)
/other      10.0.0.77(rw)
"""


def test_exports_say_who_may_do_what(
    appliance: StartAppliance, guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "exports").write_text(EXPORTS)
    served = tmp_path / "served"
    for name in ("squashed", "root", "all", "read", "other"):
        (served / name).mkdir(parents=True)
        (served / name).chmod(0o777)
    (served / "read" / "file").write_text("can be read\n")
    appliance("--directory", served, "--exports", tmp_path / "exports")
    said = guest(f"""
        for name in squashed root all read; do
            mkdir /tmp/$name
            mount -t nfs -o vers=3,nolock {SERVER}:/$name /tmp/$name
        done
        as() {{ setpriv --reuid $1 --regid $1 --clear-groups "${{@:2}}"; }}
        for name in squashed root all; do
            touch /tmp/$name/by-root
            as 1001 touch /tmp/$name/by-user
            stat -c "$name/%n %u:%g" /tmp/$name/by-* | sed "s|/tmp/$name/||"
        done
        cat /tmp/read/file
        touch /tmp/read/new 2>&1 || true
        echo secret >/tmp/root/secret; chmod 600 /tmp/root/secret
        as 1001 cat /tmp/root/secret 2>&1 || true
        mkdir /tmp/x
        mount -t nfs -o vers=3,nolock {SERVER}:/other /tmp/x 2>&1 || true
        mount -t nfs -o vers=3,nolock {SERVER}:/root/none /tmp/x 2>&1 || true
    """)
    for line in (
        "squashed/by-root 65534:65534",
        "squashed/by-user 1001:1001",
        "root/by-root 0:0",
        "root/by-user 1001:1001",
        "all/by-root 1234:5678",
        "all/by-user 1234:5678",
        "can be read",
        "touch: cannot touch '/tmp/read/new': Read-only file system",
        "cat: /tmp/root/secret: Permission denied",
        f"mount.nfs: access denied by server while mounting {SERVER}:/other",
        f"mount.nfs: mounting {SERVER}:/root/none failed, "
        "reason given by server: No such file or directory",
    ):
        assert line in said.splitlines()


def test_mount_asks_over_udp_and_is_listed(
    appliance: StartAppliance, start_guest: StartGuest
) -> None:
    server = appliance("--memory", "64M")
    running = start_guest(f"""
        mount -t nfs -o vers=3,nolock,actimeo=1,proto=tcp,mountproto=udp {SERVER}:/ /mnt
        grep -o 'mountproto=udp' /proc/mounts
        echo MOUNTED
        while ! [ -e /mnt/go ]; do sleep 0.2; done
        umount /mnt
        echo UNMOUNTED
    """)
    running.wait_for("MOUNTED")
    assert f"{GUEST}:/" in server.netns.run("showmount", "-a", SERVER).splitlines()
    server.netns.run("nfs-cp", "/etc/hostname", f"nfs://{SERVER}//go")
    running.finish()
    assert f"{GUEST}:/" not in server.netns.run("showmount", "-a", SERVER).splitlines()
