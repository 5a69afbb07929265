"""Where a store lies: in a folder, or on an object store that machines share, which each of them mirrors in a folder.

    Folder   all is where it is used; nothing is fetched and nothing handed over
    Mirror   s3://, gs:// or az://, in a folder's own layout; below $FLYWHEEL_CACHE/stores what this machine has of it

What others read is fetched when it is asked for: entries of names and ledger, records of runs, a run's files, weights.
What is made is handed over: an entry by a conditional create, a run's files as it saves, its record last, so that a run
is there whole or not at all. What is fetched is compared with the hash that it is known by.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flywheel import store
from flywheel.corpus.copies import RECORD, WEIGHTS

RECORDS = (RECORD, "begin.json", "config.yaml")  # what is known of every run
BEAT, WHOLE = "beat.json", ".whole"  # the last: of a run all is here
OURS = ("lock", WHOLE, "error.txt")  # files of a run that stay on this machine
HEAVY = (WEIGHTS,)  # fetched and handed over only when they are needed
AT_ONCE = 8  # requests


class DamagedError(ValueError):
    """What lies on a shared store is not what was written; the message says where, and what to do."""


def hashes(folder: Path) -> dict[str, str]:
    """{relative path: sha256} of a folder's files, without what a killed `write_atomic` left beside them."""
    return {path.relative_to(folder).as_posix(): store.sha256_file(path) for path in _files(folder)}


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and not (p.name[0] == "." and p.suffix == ".tmp"))


def _seen(path: Path) -> tuple[int, int, int]:
    """What tells a file that was changed: its size, its time, and which it is."""
    return (found := path.stat()).st_size, found.st_mtime_ns, found.st_ino


def at(root: str | Path) -> Folder:
    """The place that `root`, a folder or an s3://, gs:// or az:// URL, names."""
    return Mirror(str(root)) if "://" in str(root) else Folder(root)


class Folder:
    """A store in a folder of this machine, or one that is mounted."""

    url: str | None = None

    def __init__(self, root: str | Path):
        self.root = Path(root).expanduser().absolute()
        self.corpus: Path | str = self.root / "corpus"

    def __str__(self) -> str:
        return self.url or str(self.root)

    def refresh(self, folder: Path, anew: bool = False) -> None:
        """Bring a log (names, ledger) or the records of runs up to date; with `anew`, whatever is here already."""

    def create(self, path: Path, data: bytes) -> bool:
        """Make a file whole or not at all; False where the name was taken. Of several writers exactly one wins."""
        return store.link_new(path, data)

    def whole(self, run: str) -> None:
        """See that the files of a finished run are here, but weights; DamagedError where they are not as written."""

    def weights(self, path: str, sha256: str) -> Path:
        """Where the weights lie that a name tells of, if they are there; DamagedError where they are damaged."""
        return self.root / path

    def where(self, path: Path) -> Path | str:
        """Where others find a file."""
        return path

    def hand_over(self, *paths: Path) -> None:
        """Let others have these files."""

    def keep(self, run: Path, state: bool = True) -> None:
        """Let others have what a run at work has made so far, with the state that it would go on from."""

    def commit(self, run: Path, record: dict[str, Any]) -> None:
        """Write the record that makes a run a finished one; before it, all that it made is there."""
        store.write_json(run / RECORD, record, indent=1)

    def hold(self, run: Path, what: str, wait: bool = False):
        """`with`: nobody else is at this run; else LockError, or wait for it."""
        return store.Lock(run, what, wait=wait)

    def at_work(self) -> dict[str, tuple[dict[str, Any], float]]:
        """{run: (who holds it, for how many seconds nothing was heard)}."""
        found = {}
        for lock in sorted(self.root.glob("runs/*/*/lock")):
            if (holder := store.holder(lock)) is not None:
                said = [p for p in (lock, lock.parent / "log.jsonl", lock.parent / BEAT) if p.exists()]
                silent = time.time() - max(p.stat().st_mtime for p in said)
                found["/".join(lock.parent.parts[-2:])] = holder, silent
        return found

    def outputs(self, run: str) -> dict[str, str]:
        """{path below out/: sha256} of a run, as it lies in the store now."""
        return hashes(self.root / "runs" / run / "out")

    def digest(self, path: str) -> str | None:
        """sha256 of a file as it lies in the store now; None where it is gone."""
        return store.sha256_file(self.root / path) if (self.root / path).exists() else None

    def abandoned(self, before: float) -> dict[str, int]:
        """{run: bytes} of those that were never finished, and at which nobody is or was since `before`."""
        found, held = {}, self.at_work()
        for folder in sorted(self.root.glob("runs/*/*")):
            run, parts = "/".join(folder.parts[-2:]), [p.stat() for p in (folder, *folder.rglob("*"))]
            if not (folder / RECORD).exists() and run not in held and max(p.st_mtime for p in parts) < before:
                found[run] = sum(part.st_size for part in parts if stat.S_ISREG(part.st_mode))
        return found

    def drop(self, run: str) -> None:
        """Delete a run."""
        shutil.rmtree(self.root / "runs" / run, ignore_errors=True)


class Mirror(Folder):
    """A store on an object store, and the folder in which this machine has what it needed of it."""

    def __init__(self, url: str):
        from flywheel.corpus.objects import Objects

        self.objects = Objects(url)
        self.url = str(self.objects)
        name = re.sub(r"[^A-Za-z0-9.]+", "-", self.url)[-60:] + f"-{hashlib.sha256(self.url.encode()).hexdigest()[:8]}"
        super().__init__(self.objects.copies.home / "stores" / name)
        self.corpus = f"{self.url}/corpus"
        self.handed: dict[Path, tuple[int, int, int]] = {}  # each file as it was handed over
        self.leases: dict[Path, Any] = {}
        self.at_once = threading.RLock()
        store.make_dirs(self.root / "names")
        store.link_new(self.root / "id", os.urandom(8).hex().encode())

    def _inside(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def refresh(self, folder: Path, anew: bool = False) -> None:
        began, inside = time.time(), self._inside(folder)
        there = {entry["path"]: entry["size"] for entry in self.objects.listed(inside)}
        runs, _, stage = inside.partition("/")
        if runs == "runs":
            there = {name: there[name] for name in there if name.count("/") == 3 and name.endswith(RECORDS)}
            paths = [path for record in RECORDS for path in self.root.glob(f"runs/{stage or '*'}/*/{record}")]
        else:
            paths = _files(folder)
        here = {}
        for path in paths:
            with contextlib.suppress(FileNotFoundError):  # another process of this machine begins that run
                here[self._inside(path)] = path.stat()
        for name in set(here) - set(there):  # removed, unless somebody wrote it since we looked
            path = self.root / name
            if (anew or here[name].st_mtime < began - 1) and store.holder(path.parent / "lock") is None:
                path.unlink(missing_ok=True)
                (path.parent / WHOLE).unlink(missing_ok=True)
        self._fetch(name for name, size in there.items() if anew or name not in here or here[name].st_size != size)

    def create(self, path: Path, data: bytes) -> bool:
        if made := self.objects.create(self._inside(path), data):
            store.make_dirs(path.parent)
            store.write_atomic(path, data, durable=False)
        return made

    def whole(self, run: str) -> None:
        folder = self.root / "runs" / run
        if (folder / WHOLE).exists():
            return
        if not (folder / RECORD).exists():
            self.refresh(folder.parent)
        told = store.read_json(folder / RECORD)["files"]
        names = [entry["path"] for entry in self.objects.listed(f"runs/{run}")]
        self._fetch(n for n in names if not n.endswith((*HEAVY, BEAT)) and not {"quarantine", "ckpt"} & {*n.split("/")})
        for file, sha256 in sorted(told.items()):
            path, light = folder / "out" / file, not file.endswith(HEAVY) and not file.startswith("quarantine/")
            if light and (not path.exists() or store.sha256_file(path) != sha256):
                gone = not path.exists()
                path.unlink(missing_ok=True)
                raise self._damaged(f"runs/{run}/out/{file}", run, gone)
        (folder / WHOLE).touch()

    def weights(self, path: str, sha256: str) -> Path:
        file = self.root / path
        if not file.exists() or store.sha256_file(file) != sha256:  # not here yet, or damaged here
            with contextlib.suppress(FileNotFoundError):
                self._fetch([path])
                if store.sha256_file(file) != sha256:
                    file.unlink()
                    raise self._damaged(path, "/".join(path.split("/")[1:3]))
                self.objects.copies.added(file)
        with contextlib.suppress(OSError):
            os.utime(file)  # used now
        return file

    def _damaged(self, name: str, run: str, gone: bool = False) -> DamagedError:
        what = "is gone" if gone else "is damaged: its sha256 is not the one that was recorded"
        return DamagedError(
            f"{self.url}/{name} {what}. Bring the object back from a "
            f"copy or an older version of it, or remove {self.url}/runs/{run}/ and give its command again; "
            f"`flywheel fsck store={self.url}` checks all"
        )

    def _fetch(self, names: Iterable[str]) -> None:
        """Write the objects into the mirror, each in one step."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda name: self.objects.fetch(name, store.make_dirs((self.root / name).parent)), names))

    def where(self, path: Path) -> Path | str:
        return f"{self.url}/{self._inside(path)}"

    def hand_over(self, *paths: Path) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self._hand_over, paths))

    def _hand_over(self, path: Path) -> None:
        now = _seen(path)
        if self.handed.get(path) != now:
            self.objects.hand_over(self._inside(path), path)
            self.handed[path] = now

    def keep(self, run: Path, state: bool = True) -> None:
        with self.at_once:
            if run in self.leases:
                self.leases[run].held()
            made = [path for path in _files(run) if path.name not in OURS]
            self.hand_over(*(path for path in made if path.parent.name != "ckpt"))
            if state:  # last: what it tells of is there
                self.hand_over(*(path for path in made if path.parent.name == "ckpt"))
            for path in [p for p in self.handed if p.is_relative_to(run) and not p.exists()]:
                self.objects.remove(self._inside(path))
                del self.handed[path]

    def _tell(self, run: Path) -> None:
        """Hand over what a run at work says of itself, not what it needs."""
        with self.at_once:
            light = [p for p in _files(run) if p.suffix not in HEAVY and p.name not in (*OURS, RECORD)]
            with contextlib.suppress(FileNotFoundError):  # it was only there for a moment
                self.hand_over(*light)

    def commit(self, run: Path, record: dict[str, Any]) -> None:
        with self.at_once:
            if run in self.leases:
                self.leases[run].say()
            self.keep(run, state=False)
            inside = self._inside(run)
            there = {entry["path"]: entry["size"] for entry in self.objects.listed(inside)}
            for path in _files(run / "out"):
                if there.get(self._inside(path)) != path.stat().st_size:
                    raise OSError(
                        f"{self.url}/{self._inside(path)} has {there.get(self._inside(path))} bytes after it was "
                        f"handed over, expected {path.stat().st_size}; the same command tries again"
                    )
            if self.create(run / RECORD, store.to_json(record, indent=1)):
                (run / WHOLE).touch()
                self.objects.copies.added(*(path for path in _files(run) if path.suffix in HEAVY))
            else:  # of two that made the same the first counts
                self._fetch([f"{inside}/{RECORD}"])
            for name in there:
                if name in (f"{inside}/ckpt/state.safetensors", f"{inside}/{BEAT}"):
                    self.objects.remove(name)

    @contextlib.contextmanager
    def hold(self, run: Path, what: str, wait: bool = False) -> Iterator[None]:
        from flywheel.runs.lease import Lease

        with store.Lock(run, what, wait=wait):
            lease = Lease(self.objects, "/".join(run.parts[-2:]), what, (self.root / "id").read_text())
            lease.take(wait)
            self.leases[run] = lease
            try:
                self._bring_back(run)
                with lease.kept(lambda: self._tell(run)):
                    yield
            finally:
                del self.leases[run]
                done = (run / RECORD).exists()
                if not done and not lease.lost:
                    with contextlib.suppress(OSError):  # the log of how it ended; the next machine does without
                        self._tell(run)
                lease.give_back(done)

    def _bring_back(self, run: Path) -> None:
        """Make the folder of a run that begins or goes on what the store has of it: another machine may have been at
        it since this one was."""
        names = [entry["path"] for entry in self.objects.listed(self._inside(run))]
        if f"{self._inside(run)}/{RECORD}" in names:
            self.refresh(run.parent)
            return
        for path in run.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != "lock":
                path.unlink()
        self.handed = {path: seen for path, seen in self.handed.items() if not path.is_relative_to(run)}
        self._fetch(names)
        self.handed |= {path: _seen(path) for path in _files(run)}

    def at_work(self) -> dict[str, tuple[dict[str, Any], float]]:
        from flywheel.runs import lease

        found = lease.holders(self.objects)
        for run in found:
            with contextlib.suppress(FileNotFoundError):
                self._fetch([f"runs/{run}/{BEAT}"])
        return found

    def outputs(self, run: str) -> dict[str, str]:
        inside = f"runs/{run}/out/"
        names = [entry["path"] for entry in self.objects.listed(inside[:-1])]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {name.removeprefix(inside): it for name, it in zip(names, pool.map(self.digest, names), strict=True)}

    def digest(self, path: str) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return self.objects.sha256(path)
        return None

    def abandoned(self, before: float) -> dict[str, int]:
        runs: dict[str, list] = {}
        for entry in self.objects.listed("runs"):
            runs.setdefault("/".join(entry["path"].split("/")[1:3]), []).append(entry)
        held, found = self.at_work(), {}
        for run, entries in sorted(runs.items()):
            done = any(entry["path"] == f"runs/{run}/{RECORD}" for entry in entries)
            if not done and run not in held and max(e["last_modified"].timestamp() for e in entries) < before:
                found[run] = sum(entry["size"] for entry in entries)
        return found

    def drop(self, run: str) -> None:
        from flywheel.runs.lease import Lease

        lease = Lease(self.objects, run, "gc", (self.root / "id").read_text())
        with contextlib.suppress(store.LockError):  # somebody goes on with it
            lease.take(wait=False)
            self.objects.remove(f"runs/{run}")
            lease.give_back(done=True)
            super().drop(run)
