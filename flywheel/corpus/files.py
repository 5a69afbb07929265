"""Where a corpus lies: the few things that it asks of a folder on a disk. corpus.objects answers them on an object
store.

Names are relative, with slashes. A file's bytes never change under a name, except through `replace`.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from flywheel import store


class Files:
    """A folder on a local disk or NFS. What is written is durable when a method returns."""

    def __init__(self, root: Path):
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def read(self, name: str) -> bytes:
        """The bytes of a file; FileNotFoundError where there is none."""
        return (self.root / name).read_bytes()

    def map(self, name: str) -> mmap.mmap | bytes:
        """The bytes of a large file, without reading them all."""
        with open(self.root / name, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if os.fstat(file.fileno()).st_size else b""

    def exists(self, name: str) -> bool:
        return (self.root / name).exists()

    def create(self, name: str, data: bytes) -> bool:
        """Make a file whole or not at all; False where the name was taken. Of several writers exactly one wins."""
        store.make_dirs((self.root / name).parent)
        return store.link_new(self.root / name, data)

    def replace(self, name: str, data: bytes) -> None:
        """Make a file or exchange it, in one step."""
        store.make_dirs((self.root / name).parent)
        store.write_atomic(self.root / name, data)

    def tree(self, name: str, files: Mapping[str, bytes]) -> None:
        """Make a folder of files whose name is new; nobody may rely on it before something names it."""
        store.write_tree(self.root / name, files)

    def folder(self, name: str) -> None:
        """Make the folder of a file, and durable all the way up: one who made a part of it may have been stopped."""
        folder = store.make_dirs((self.root / name).parent)
        while folder != self.root:
            folder = folder.parent
            store.fsync_dir(folder)

    def settle(self, *names: str) -> None:
        """Make files that somebody else made durable: he may have died between link and fsync."""
        for folder in dict.fromkeys((self.root / name).parent for name in names):
            store.fsync_dir(folder)

    def names(self, folder: str) -> list[str]:
        """The files below a folder, sorted; what is being written aside is left out."""
        found = []
        for where, _, files in os.walk(self.root / folder):
            inside = os.path.relpath(where, self.root)
            found += [f"{inside}/{file}" for file in files if file[0] != "."]
        return sorted(found)

    def children(self, folder: str) -> dict[str, tuple[int, float]]:
        """{name: (bytes, when anything in it was last written)} of what lies in a folder, folders as a whole.

        Seconds since 1970; infinity where somebody is at work in it.
        """
        there = self.root / folder
        return {path.name: self._weigh(path) for path in there.iterdir()} if there.exists() else {}

    def leftovers(self) -> dict[str, tuple[int, float]]:
        """Files that killed writers left aside, as `children`."""
        found = [path for pattern in (".*.tmp", "log/*/.*.tmp", "tags/.*.tmp", "checkpoints/.*.tmp", "cache/.*.tmp")
                 for path in sorted(self.root.glob(pattern))]  # fmt: skip
        return {path.relative_to(self.root).as_posix(): self._weigh(path) for path in found}

    def age(self, name: str) -> float:
        """When a file was written, in seconds since 1970."""
        return (self.root / name).stat().st_mtime

    def remove(self, name: str) -> None:
        """Delete a file, or a folder so that it vanishes at once and a rest of it is an orphan."""
        path = self.root / name
        if path.is_dir():
            aside = path if ".tmp-" in path.name else path.with_name(f"{path.name}.tmp-{os.getpid()}")
            os.rename(path, aside)
            shutil.rmtree(aside)
        else:
            path.unlink(missing_ok=True)

    def lock(self, what: str):
        """Held by one at a time, for what may not run twice."""
        return store.Lock(self.root / "cache", what, name="gc.lock")

    def _weigh(self, path: Path) -> tuple[int, float]:
        try:
            parts = [part.stat() for part in (path, *(path.rglob("*") if path.is_dir() else ()))]
        except FileNotFoundError:
            return 0, float("inf")
        files = parts[1:] if path.is_dir() else parts
        return sum(part.st_size for part in files if not part.st_mode & 0o040000), max(p.st_mtime for p in parts)
