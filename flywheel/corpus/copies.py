"""Local copies of objects that never change, at most so many bytes of them: the one used longest ago goes first.

$FLYWHEEL_CACHE (default ~/.cache/flywheel) holds them, $FLYWHEEL_CACHE_GB bounds all of them (default 32). When
they were used stands in the files' times, so that processes that share the folder agree. It may be deleted at any time,
but for `stores/` in it (flywheel.runs.mirror): there only the weights of finished runs are copies.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from flywheel.corpus.segment import CorpusError

GB = 32.0
ROOM = 0.9  # of the limit, to which a full folder is emptied
STORES, RECORD = "stores", "_DONE.json"  # of runs, and what ends one
WEIGHTS = ".safetensors"


class Copies:
    """The copies of what lies at `url`, in `home` (None: as the environment says)."""

    def __init__(self, url: str, home: Path | None = None):
        self.home = home or Path(os.environ.get("FLYWHEEL_CACHE") or Path.home() / ".cache/flywheel")
        self.folder = self.home / hashlib.sha256(url.encode()).hexdigest()[:16]
        told = os.environ.get("FLYWHEEL_CACHE_GB") or GB
        try:
            self.limit = int(float(told) * 1e9)
        except (ValueError, OverflowError):
            self.limit = -1
        if self.limit < 0:
            raise CorpusError(
                f"FLYWHEEL_CACHE_GB={told!r}; expected a number of gigabytes, such as 32 (0: keep nothing for long)"
            )
        self._size: int | None = None  # bytes in `home`, as far as this process knows

    def path(self, name: str) -> Path:
        """Where a copy lies if there is one; it counts as used now."""
        kept = self.folder / name
        with contextlib.suppress(OSError):
            os.utime(kept)
        return kept

    def keep(self, name: str, data: bytes) -> Path:
        """A copy, made in one step; others go where there are too many. OSError where it cannot be written."""
        kept = self.folder / name
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{kept.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")
        try:
            aside.write_bytes(data)
            os.replace(aside, kept)
        finally:
            aside.unlink(missing_ok=True)
        self.added(kept)
        return kept

    def added(self, *paths: Path) -> None:
        """These are there now, and used; others go where there are too many."""
        if self._size is not None:
            with contextlib.suppress(FileNotFoundError):  # somebody else made room
                self._size += sum(path.stat().st_size for path in paths)
        if self._size is None or self._size > self.limit:
            self._make_room({str(path) for path in paths})

    def drop(self, *names: str) -> None:
        """Forget copies."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, newest: set[str]) -> None:
        """Weigh all copies that are there; above the limit those used longest ago go, not the `newest`."""
        found = []
        for folder, _, names in os.walk(self.home):
            for path in (os.path.join(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):  # somebody else makes room, too
                    if self._again(Path(path)):
                        stat = os.stat(path)
                        found.append((stat.st_mtime_ns, stat.st_size, path))
        self._size = sum(size for _, size, _ in found)
        if self._size <= self.limit:
            return
        for _, size, path in sorted(found):
            if self._size <= ROOM * self.limit:
                break
            if path not in newest:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                    self._size -= size

    def _again(self, path: Path) -> bool:
        """Is this file fetched again when it is asked for?"""
        top, *inside = path.relative_to(self.home).parts
        if top != STORES:
            return True
        run = Path(self.home, STORES, *inside[:4])  # NAME/runs/STAGE/KEY
        return len(inside) > 4 and path.suffix == WEIGHTS and (run / RECORD).exists()
