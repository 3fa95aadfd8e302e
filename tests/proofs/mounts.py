"""Mounts that leave nothing behind: each is in a mount namespace of its own, which ends with the
process that serves it.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType

TOP = Path(__file__).parents[2]
READY_SECONDS = 20


class FuseMount:
    """An image, or "memory", mounted by fuse_adapter.py. Afterwards it is unmounted, and the
    adapter has to have nothing to complain about."""

    def __init__(self, what: str | Path, folder: Path) -> None:
        self.path = folder / "fuse"
        self.path.mkdir()
        self._stderr = folder / "adapter-stderr"
        with self._stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    "setpriv", "--pdeathsig", "KILL",
                    "unshare", "--mount", "--propagation", "private",
                    sys.executable, "-m", "tests.proofs.fuse_adapter", what, self.path,
                ],
                cwd=TOP,
                env=os.environ | {"FUSE_LIBRARY_NAME": "fuse3"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
            )  # fmt: skip
        assert self.process.stdout is not None
        ready = select.select([self.process.stdout], [], [], READY_SECONDS)[0]
        if not ready or self.process.stdout.readline() != b"mounted\n":
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            raise AssertionError(f"not mounted: {self._stderr.read_text()}")

    def command(self, *words: str | Path) -> list[str]:
        """A command line that runs in the mounted directory."""
        space = f"--mount=/proc/{self.process.pid}/ns/mnt"
        return ["nsenter", space, f"--wdns={self.path}", *map(str, words)]

    def run(self, *words: str | Path, timeout: float = 120) -> str:
        """Run a program in the mounted directory; what it said. It has to end well."""
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
        said = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"{words} -> {done.returncode}\n{said}\n{self.said()}"
        return said

    def said(self) -> str:
        return self._stderr.read_text(errors="replace")

    def close(self) -> None:
        assert self.process.stdout is not None
        try:
            self.run("umount", "--lazy", self.path)
            code = self.process.wait(30)
        finally:
            self.process.kill()
            self.process.stdout.close()
        assert code == 0, f"the adapter ended with {code}\n{self.said()}"
        assert "Traceback" not in self.said(), self.said()

    def __enter__(self) -> FuseMount:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.close()
