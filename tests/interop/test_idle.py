"""An appliance with nothing to do lets the processor sleep."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.interop.conftest import StartAppliance
from tests.interop.lab import SERVER, TOP, Appliance, Namespace

pytestmark = pytest.mark.root

WAKES_PER_SECOND_MAX = 5
LOOK_SECONDS = 4
QUIET_AFTER_SECONDS = 3
"""The second announcement of our address is two seconds after the start."""

IDLE_CLIENT = f"""
import sys
from tests.proofs.load import Connection
connection = Connection({SERVER!r}, 1)
root = connection.nfs.mount()
connection.nfs.attributes(root)
print("mounted", flush=True)
sys.stdin.read()
"""


def wakes(server: Appliance) -> int:
    """How often its threads have gone to sleep, and so have been woken, since the start."""
    tasks = Path(f"/proc/{server.pid}/task").iterdir()
    found = (re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status(task), re.M) for task in tasks)
    return sum(int(count[1]) for count in found if count is not None)


def status(task: Path) -> str:
    return (task / "status").read_text()


def test_an_idle_mount_wakes_nobody(appliance: StartAppliance, netns: Namespace) -> None:
    server = appliance("--memory", "64M", pcap=False)
    client = subprocess.Popen(
        netns.command(sys.executable, "-c", IDLE_CLIENT),
        cwd=TOP,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"mounted\n"
        time.sleep(QUIET_AFTER_SECONDS)
        before = wakes(server)
        time.sleep(LOOK_SECONDS)
        count = wakes(server) - before
        assert client.poll() is None, "it is still mounted"
        client.kill()
    assert count < WAKES_PER_SECOND_MAX * LOOK_SECONDS, f"{count} in {LOOK_SECONDS} s"
