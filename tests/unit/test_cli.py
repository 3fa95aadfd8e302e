"""The command line: what it means, and how it says that something cannot be."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from appliance import trace
from appliance.addressing import host_config
from appliance.cli import main, notify, parse_mount, parser, settings_of
from appliance.fsimage.device import FileDevice
from appliance.fsimage.durability import Durability
from appliance.fsimage.overlays import open_overlay
from appliance.machine import Machine
from appliance.mounts import MountSpec
from appliance.netstack.link.capture import CaptureSpec
from appliance.words import UsageError


@pytest.mark.parametrize(
    ("kind", "text", "spec"),
    [
        ("image", "fs.img", MountSpec("image", "fs.img", "/", False, None)),
        ("image", "fs.img@/data", MountSpec("image", "fs.img", "/data", False, None)),
        ("image", "fs.img@/a/b/,ro", MountSpec("image", "fs.img", "/a/b", True, None)),
        ("image", "disk.img,partition=2", MountSpec("image", "disk.img", "/", False, 2)),
        ("image", "d.img@/x,partition=3,ro", MountSpec("image", "d.img", "/x", True, 3)),
        ("image", "fs.img@/", MountSpec("image", "fs.img", "/", False, None)),
        ("image", "/me@home,1.img", MountSpec("image", "/me@home,1.img", "/", False, None)),
        ("image", "me@home/a,b.img@/x", MountSpec("image", "me@home/a,b.img", "/x", False, None)),
        ("image", "a,b@/c,d,ro", MountSpec("image", "a,b", "/c,d", True, None)),
        ("image", "backup,ro@/", MountSpec("image", "backup,ro", "/", False, None)),
        ("image", "dir@/fs.img@/", MountSpec("image", "dir@/fs.img", "/", False, None)),
        ("image", "fs.img,rw", MountSpec("image", "fs.img,rw", "/", False, None)),
        ("image", "x,partition=1@/", MountSpec("image", "x,partition=1", "/", False, None)),
        ("image", "fs.img,overlay", MountSpec("image", "fs.img", "/", False, None, "")),
        ("image", "a@/x,overlay=b/c", MountSpec("image", "a", "/x", False, None, "b/c")),
        ("image", "a,overlay=b,partition=2", MountSpec("image", "a", "/", False, 2, "b")),
        ("image", "a,partition=2,overlay", MountSpec("image", "a", "/", False, 2, "")),
        ("image", "a,overlay=b=c@d", MountSpec("image", "a", "/", False, None, "b=c@d")),
        ("image", "a,overlay@/", MountSpec("image", "a,overlay", "/", False, None)),
        ("image", "a,overlay=b@/", MountSpec("image", "a,overlay=b", "/", False, None)),
        ("image", "a,overlays", MountSpec("image", "a,overlays", "/", False, None)),
        ("image", "a,ro=1", MountSpec("image", "a,ro=1", "/", False, None)),
        ("image", "a,partition", MountSpec("image", "a,partition", "/", False, None)),
        ("directory", "/srv@/srv,ro", MountSpec("directory", "/srv", "/srv", True, None)),
        ("memory", "64M", MountSpec("memory", "64M", "/", False, None)),
    ],
)
def test_a_mount_is_a_source_a_path_and_options(kind: str, text: str, spec: MountSpec) -> None:
    assert parse_mount(kind, text) == spec


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("image", ""),
        ("image", ",ro"),
        ("image", "@/x"),
        ("memory", "1G,partition=1"),
        ("memory", "1G,ro"),
        ("memory", "1G,overlay"),
        ("directory", "/srv,overlay=x"),
        ("image", "a,overlay="),
        ("image", "a,ro,overlay"),
        ("image", "a,overlay=b,ro"),
        ("image", "a,overlay,overlay=b"),
        ("image", "a,partition=1,partition=2"),
        *(("image", f"a,partition={n}") for n in ("", "0", "-1", "x", "1000000", "\u0663", " 1")),
    ],
)
def test_a_mount_that_cannot_be_is_refused(kind: str, text: str) -> None:
    with pytest.raises(UsageError):
        parse_mount(kind, text)


def test_memory_that_is_only_read_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--ip", "10.0.0.5", "--memory", "1G,ro"]) == 2
    assert capsys.readouterr().err == (
        "error: an empty file system that is only read is of no use\nhint: leave out ,ro\n"
    )


@pytest.mark.parametrize("word", ["full", "process", "lazy"])
def test_how_durable_is_said_in_a_word(word: str) -> None:
    words = ["--ip", "10.0.0.5", "--memory", "1M", "--sync", word, "--control", "/run/ctl"]
    settings = settings_of(parser().parse_args(words))
    assert settings.sync is Durability(word)
    assert settings.control == Path("/run/ctl")
    assert settings_of(parser().parse_args(words[:4])).sync is Durability.FULL


def test_mounts_keep_their_order() -> None:
    words = ["--ip", "10.0.0.5", "--memory", "1M", "--directory", "/a@/a", "--memory", "2M@/b"]
    settings = settings_of(parser().parse_args(words))
    assert [(m.kind, m.path) for m in settings.mounts] == [
        ("memory", "/"),
        ("directory", "/a"),
        ("memory", "/b"),
    ]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--ip", "10.0.0.5"],
        ["--memory", "1M"],
        ["--ip", "10.0.0.999", "--memory", "1M"],
        ["--ip", "10.0.0.5", "--memory", "1M", "--nfsd-threads", "0"],
        ["--ip", "10.0.0.5", "--memory", "1M", "--tap", "a", "--tap-fd", "3"],
        ["--ip", "10.0.0.5", "--memory", "1M", "--nonsense"],
        ["--ip", "10.0.0.5", "--memory", "1M", "--mtu", "abc"],
        ["--ip", "10.0.0.5", "--memory", "1M", "--sync", "never"],
        ["--ip", "10.0.0.5", "--memory", "1M", "--congestion", "vegas"],
        ["merge", "fs.img"],
        ["merge", "--force", "fs.img", "changes"],
    ],
)
def test_a_wrong_command_line_is_one_error_a_hint_at_most_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    assert "Traceback" not in err


def test_images_that_are_mounted_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By whatever name. Whoever only reads may."""
    image, other = tmp_path / "fs.img", tmp_path / "other"
    image.write_bytes(b"")
    other.symlink_to(image)

    def served(*specs: str) -> int:
        mounts = [word for spec in specs for word in ("--image", spec)]
        return main(["--ip", "10.0.0.5", "--tap", "never-made", *mounts])

    assert served(str(image), f"{other}@/b,overlay") == 2
    assert "named twice" in capsys.readouterr().err
    assert served(f"{image},overlay={other}") == 2
    assert served(f"{image},overlay={tmp_path}/new", f"x@/b,overlay={tmp_path}/./new") == 2
    assert not (tmp_path / "new").exists()
    capsys.readouterr()
    assert served(f"{image},partition=1", f"{other}@/b,partition=1,ro") == 2
    assert served(f"{image},partition=1", f"{other}@/b,partition=2,overlay") == 2
    assert served(f"{image},partition=1", f"{other}@/b") == 2
    assert capsys.readouterr().err.count("named twice") == 3
    assert served(f"{image},ro", f"{other}@/b,overlay") == 1
    assert served(f"{image},partition=1", f"{other}@/b,partition=2") == 1
    assert "named twice" not in capsys.readouterr().err


def test_lines_of_the_log_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    trace.start("info")
    trace.log.warning("what")
    thread = threading.Thread(target=trace.log.warning, args=("else",), name="nfsd-1")
    thread.start()
    thread.join()
    assert capsys.readouterr().err == "warning: what\nnfsd-1: else\n"


@pytest.mark.parametrize(
    "mount",
    [
        ["--image", "/nonexistent/fs.img"],
        ["--directory", "/nonexistent"],
        ["--memory", "lots"],
        ["--memory", "1M", "--memory", "1M"],
        ["--memory", "1M", "--exports", "/nonexistent/exports"],
        ["--memory", "1M", "--control", "/nonexistent/control"],
        ["--image", "/nonexistent/fs.img,overlay"],
    ],
)
def test_what_cannot_be_served_is_an_error_and_exit_code_1(
    mount: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--ip", "10.0.0.5", "--tap", "never-made", *mount]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert not Path("/sys/class/net/never-made").exists()


def test_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, changes = tmp_path / "fs.img", tmp_path / "changes"
    image.write_bytes(bytes(10_000))
    overlay = open_overlay(str(changes), FileDevice(image), str(image))
    overlay.write(5000, [b"changed"])
    assert main(["merge", str(image), str(changes)]) == 1
    assert "in use" in capsys.readouterr().err
    overlay.close()
    assert main(["merge", str(image), str(changes)]) == 0
    assert capsys.readouterr() == (f"{image}: 4096 bytes merged\n", "")
    assert image.read_bytes() == bytes(5000) + b"changed" + bytes(4993)
    changes.write_text("something else")
    assert main(["merge", str(image), str(changes)]) == 1
    assert "not an overlay" in capsys.readouterr().err


def test_a_merge_is_interrupted_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("appliance.merge.merge", interrupted)
    assert main(["merge", "fs.img", "changes"]) == 1
    assert capsys.readouterr().err == "error: interrupted\nhint: nothing is lost: run it again\n"


def test_nothing_is_left_of_a_start_that_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the control socket nor a lock."""
    control = tmp_path / "control"
    words = ["--ip", "10.0.0.5", "--tap", "lo", "--memory", "1M", "--control", str(control)]
    for _ in range(2):
        assert main(words) == 1
        assert "control" not in capsys.readouterr().err
        assert not control.exists()


def test_check_exports_prints_the_table_or_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good"
    good.write_text("/srv 10.0.0.0/24(rw,no_root_squash)\n")
    assert main(["--check-exports", str(good)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("/srv 10.0.0.0/24(")
    bad = tmp_path / "bad"
    bad.write_text("/srv 10.0.0.0/24(rw_squash)\n")
    assert main(["--check-exports", str(bad)]) == 1
    out, err = capsys.readouterr()
    assert f"{bad}:1:" in err


def test_the_service_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_a_python_without_assertions_is_refused() -> None:
    command = [sys.executable, "-O", "-m", "appliance", "--ip", "10.0.0.5", "--memory", "1M"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: python -O")


SERVE = ["--ip", "10.0.0.5", "--memory", "1G"]


def test_a_capture_is_a_file_and_how_large_it_becomes() -> None:
    def capture(text: str) -> CaptureSpec | None:
        return settings_of(parser().parse_args([*SERVE, "--pcap", text])).pcap

    assert capture("run.pcapng") == CaptureSpec(Path("run.pcapng"))
    assert capture("a,b,size=10M,files=3") == CaptureSpec(Path("a,b"), 10 << 20, 3)
    assert capture("a,files=4,size=1M") == CaptureSpec(Path("a"), 1 << 20, 4)
    for text in (",size=1M", "a,size=1", "a,size=x", "a,files=3", "a,size=1M,files=0"):
        with pytest.raises(UsageError):
            capture(text)


def test_congestion_control_is_cubic_unless_somebody_wants_another() -> None:
    chosen = [*SERVE, "--congestion", "newreno"]
    assert settings_of(parser().parse_args(SERVE)).congestion == "cubic"
    assert settings_of(parser().parse_args(chosen)).congestion == "newreno"


def test_what_is_said_of_neighbours_gets_to_the_stack() -> None:
    words = ["--memory", "1M", "--ip", "10.0.0.5", "--neighbour", "10.0.0.9=02:00:00:00:00:09"]
    interface = settings_of(parser().parse_args(words)).interface
    assert host_config(interface).neighbours == (
        (bytes((10, 0, 0, 9)), bytes.fromhex("020000000009")),
    )


def test_faults_are_rules_in_their_order_and_told_at_the_start() -> None:
    words = ["--fault", "drop=1%,seed=7", "--fault", "delay=20ms,filter=out"]
    settings = settings_of(parser().parse_args([*SERVE, *words]))
    assert [rule.conditions.loss for rule in settings.faults] == [0.01, 0.0]
    machine = Machine(settings)
    assert "frames are harmed on purpose: drop=1%,seed=7" in machine.remarks()


def test_a_fault_that_cannot_be_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SERVE, "--fault", "dorp=1%"]) == 2
    assert capsys.readouterr().err == (
        'error: --fault dorp=1%: "dorp" is no kind of fault\nhint: did you mean drop?\n'
    )


def test_a_start_that_fails_leaves_the_signals_as_they_were() -> None:
    """Who has called us goes on, and what it starts inherits them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert main(["--ip", "10.0.0.5", "--image", "/nonexistent/fs.img"]) == 1
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_ctrl_c_while_it_is_imported_is_no_traceback() -> None:
    script = """
import runpy, signal, sys

# Whoever started the tests in the background may have it ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == "appliance.fsimage":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
runpy.run_module("appliance", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")
