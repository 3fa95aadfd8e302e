"""What is served: the images, directories and memory that the user named, opened, and mounted as
one tree."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from appliance.clock import Clock
from appliance.fsimage.durability import Durability
from appliance.fsimage.errors import ImageError
from appliance.ifconf import ConfigError
from appliance.vfs.errors import VfsError
from appliance.vfs.interface import AboutToWait, FileSystem
from appliance.vfs.memory import MemoryFileSystem
from appliance.vfs.tree import Tree

if TYPE_CHECKING:
    from appliance.fsimage.device import FileDevice


@dataclass(frozen=True, slots=True)
class MountSpec:
    """Something to serve, and where: kind is image, directory or memory."""

    kind: str
    source: str
    path: str
    read_only: bool
    partition: int | None
    overlay: str | None = None
    """Where changes go, if not into the image: a file, or "" for memory."""

    @property
    def is_written(self) -> bool:
        """Whether the source itself changes."""
        return not self.read_only and self.overlay is None


class MountError(Exception):
    """Something cannot be served; `hint` says what would help."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class Mounts:
    """What `specs` name. What is not used is not even imported: users start a server for every
    test."""

    def __init__(
        self,
        specs: Sequence[MountSpec],
        *,
        durability: Durability,
        clock: Clock,
        random: random.Random,
        about_to_wait: AboutToWait,
    ) -> None:
        self.opened: Final[list[tuple[MountSpec, FileSystem]]] = []
        self._specs = specs
        self._durability = durability
        self._clock = clock
        self._random = random
        self._about_to_wait = about_to_wait
        self._notes: list[str] = []
        self._disks: dict[str, FileDevice] = {}

    def mount(self) -> Tree:
        """Open all. MountError: nothing is left open."""
        try:
            self._open_disks()
            for spec in self._specs:
                self.opened.append((spec, self._open(spec)))
            return Tree.of([(spec.path, made) for spec, made in self.opened], self._clock)
        except (VfsError, ImageError, ConfigError) as error:
            for _, filesystem in self.opened:
                with suppress(VfsError):
                    filesystem.close()
            why = error.detail if isinstance(error, VfsError) else str(error)
            raise MountError(why, getattr(error, "hint", "")) from None
        finally:
            for disk in self._disks.values():
                disk.close()  # each of its partitions has it open by now

    def remarks(self) -> list[str]:
        """What the user may not expect of what is served."""
        remarks = []
        for spec, filesystem in self.opened:
            remark = f"{spec.source} is served read-only"
            known = any(note.startswith(remark) for note in self._notes)
            if filesystem.read_only and not spec.read_only and not known:
                remarks.append(remark)
        return remarks + self._notes

    def _open_disks(self) -> None:
        """Open each image of which several partitions are served, and one is written to: its lock
        is for one writer."""
        parts = [spec for spec in self._specs if spec.kind == "image" and spec.overlay is None]
        for path, several in groupby(sorted(parts, key=_path_of), _path_of):
            specs = list(several)
            if len(specs) > 1 and any(spec.is_written for spec in specs):
                from appliance.fsimage.device import FileDevice

                self._disks[path] = FileDevice(
                    specs[0].source, read_only=False, about_to_wait=self._about_to_wait
                )

    def _open(self, spec: MountSpec) -> FileSystem:
        """The file system of one --image, --directory or --memory."""
        match spec.kind:
            case "image":
                from appliance.fsimage.image import open_image

                return open_image(
                    spec.source,
                    partition=spec.partition,
                    read_only=spec.read_only,
                    overlay=spec.overlay,
                    durability=self._durability,
                    clock=self._clock,
                    about_to_wait=self._about_to_wait,
                    note=self._notes.append,
                    disk=self._disks.get(_path_of(spec)),
                )
            case "directory":
                from appliance.vfs.hostdir import HostDirectory

                try:
                    return HostDirectory(
                        spec.source, read_only=spec.read_only, about_to_wait=self._about_to_wait
                    )
                except VfsError as error:
                    raise ConfigError(f"{spec.source}: {error.detail}") from None
            case _:
                return MemoryFileSystem(
                    parse_size(spec.source),
                    fsid=zlib.crc32(spec.path.encode()) | 1 << 32,
                    clock=self._clock,
                    random=self._random,
                )


def _path_of(spec: MountSpec) -> str:
    return os.path.realpath(spec.source)


def parse_size(text: str) -> int:
    """64M, 2G, ...: bytes."""
    unit = "KMGT".find(text[-1:].upper()) + 1 if text else 0
    number = text[:-1] if unit else text
    if not number.isdecimal() or not int(number):
        raise ConfigError(f"{text!r} is not a size", "for example 64M or 2G")
    return int(number) << 10 * unit
