"""Durable, atomic files on a local disk: everything that flywheel publishes goes through these few functions.

Nothing is ever half done: bytes are written aside, fsynced, and only then renamed or linked to their name, and the
folder is fsynced so that the name survives a power cut as well.

    write_atomic   replaces: the reader sees the old bytes or the new ones
    link_new       creates whole or not at all; of several writers exactly one wins (works on NFS, no lock server)
    write_tree     a folder of files that appears at once
    Lock           one holder a folder; the operating system releases it when the holder dies
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

AT_ONCE = 8  # threads that wait for fsync


class LockError(RuntimeError):
    """Somebody else holds the lock; the message says who, since when, and what to do."""


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def fsync_dir(path: str | os.PathLike) -> None:
    """Make the names in a folder durable (an fsynced file without its name is lost in a power cut)."""
    _fsync(path, os.O_DIRECTORY)


def _fsync(path: str | os.PathLike, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_dirs(path: str | os.PathLike) -> Path:
    """Create a folder and its parents, each name made durable; returns it."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        fsync_dir(folder.parent)
    return path


def _write(path: Path, data: bytes, durable: bool = True) -> None:
    """Write and fsync one file; its name is not durable yet. The error of a full disk names the file."""
    try:
        with open(path, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _aside(path: Path) -> Path:
    """A name beside `path` that no other writer uses; readers skip names that start with a dot."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def _discard(aside: Path) -> None:
    """Remove what was written aside, if we can: on storage that fails, the first error is the one to tell."""
    with contextlib.suppress(OSError):
        aside.unlink()


def write_atomic(path: str | os.PathLike, data: bytes, durable: bool = True) -> None:
    """Replace the file at `path` by `data` in one step. What is not `durable` may be half there after a power cut."""
    path = Path(path)
    aside = _aside(path)
    try:
        _write(aside, data, durable)
        os.replace(aside, path)
    finally:
        _discard(aside)
    if durable:
        fsync_dir(path.parent)


def link_new(path: str | os.PathLike, data: bytes) -> bool:
    """Create the file at `path` whole or not at all, durably. True if we made it, False if the name was taken."""
    path = Path(path)
    aside = _aside(path)
    try:
        _write(aside, data)
        os.link(aside, path)
    except FileExistsError:
        return False
    finally:
        _discard(aside)
    fsync_dir(path.parent)
    return True


def write_tree(folder: str | os.PathLike, files: Mapping[str, bytes]) -> None:
    """Create `folder` with `files` ({relative path: bytes}) so that it appears at once.

    It is written as <folder>.tmp-<pid>, files and folders are fsynced, and it is renamed. The name must be new. All are
    fsynced at once: the disk then commits them together, several times faster than one after the other.
    """
    from concurrent.futures import ThreadPoolExecutor

    folder = Path(folder)
    aside = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        aside.mkdir(parents=True)
        folders = {aside}
        for name, data in files.items():
            target = aside / name
            if target.parent not in folders:
                target.parent.mkdir(parents=True, exist_ok=True)
                folders |= {parent for parent in target.parents if parent.is_relative_to(aside)}
            _write(target, data, durable=False)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(_fsync, [*(aside / name for name in files), *folders]))
        os.rename(aside, folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_dir(folder.parent)


def to_json(value: Any, indent: int | None = None) -> bytes:
    """JSON with sorted keys and a final newline, so that equal values are equal bytes."""
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, sort_keys=True, separators=separators, indent=indent)
    return text.encode() + b"\n"


def write_json(path: str | os.PathLike, value: Any, indent: int | None = None) -> None:
    """Replace the file at `path` by `value` as JSON, atomically and durably."""
    write_atomic(path, to_json(value, indent))


def read_json(path: str | os.PathLike) -> Any:
    """The JSON value in a file; ValueError names the file where it is not JSON."""
    data = Path(path).read_bytes()
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); the file is damaged or not one of ours") from error


def sha256_file(path: str | os.PathLike) -> str:
    """sha256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Lock:
    """A lock on a folder, exclusive unless `shared`: `with Lock(store, what="nightly"): ...`.

    It is a flock on <folder>/<name>, so the operating system releases it however the holder ends. The file also says
    who holds it alone. One that cannot have it raises LockError at once, or waits with wait=True. A forked child holds
    the lock too.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        what: str = "flywheel",
        *,
        wait: bool = False,
        name: str = "lock",
        shared: bool = False,
    ):
        self.path = Path(folder) / name
        self.what, self.wait, self.shared = what, wait, shared
        self._fd: int | None = None

    def __enter__(self) -> Lock:
        make_dirs(self.path.parent)
        try:
            fd = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666
            )  # less the umask: a group may share a store
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise LockError(
                f"{self.path} is a link to {os.readlink(self.path)}; expected a file of the store itself. Nothing was "
                "written: remove the link, and see who made it"
            ) from None
        try:
            kind = fcntl.LOCK_SH if self.shared else fcntl.LOCK_EX
            fcntl.flock(fd, kind | (0 if self.wait else fcntl.LOCK_NB))
        except BlockingIOError:
            holder = os.pread(fd, 1 << 16, 0)
            os.close(fd)
            raise LockError(self._explain(holder)) from None
        except BaseException:
            os.close(fd)
            raise
        if not self.shared:
            holder = {"what": self.what, "pid": os.getpid(), "host": socket.gethostname(), "since": now()}
            holder["command"] = shlex.join(sys.orig_argv)
            os.ftruncate(fd, 0)
            os.pwrite(fd, to_json(holder), 0)
        self._fd = fd
        return self

    def __exit__(self, *exc: object) -> None:
        if not self.shared:
            os.ftruncate(self._fd, 0)
        os.close(self._fd)
        self._fd = None

    def _explain(self, data: bytes) -> str:
        try:
            holder = json.loads(data)
            who = (
                f"{holder['what']} (pid {holder['pid']} on {holder['host']}, since {holder['since']}, "
                f"command: {holder['command']})"
            )
        except (ValueError, KeyError, TypeError):  # several share it, or the holder has not yet written its line
            who = "others, or another process that has just started (`flywheel status` lists what is at work)"
        return (
            f"{self.path.parent}: {self.what} cannot start, the folder is in use by {who}. "
            "Wait until it ends, or stop it: its lock goes with it."
        )


def holder(path: Path) -> dict[str, Any] | None:
    """Who holds the lock file alone: {"what", "pid", "host", "since", "command"}; None where nobody does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        with contextlib.suppress(ValueError):
            return json.loads(os.pread(fd, 1 << 16, 0))
        return {}
    finally:
        os.close(fd)


def publish_folder(aside: Path, out: Path, made: dict[str, str]) -> None:
    """Give `aside` its name, durably; an equal export that is there already stays as it is."""
    if out.exists() and any(out.iterdir()):
        there = {p.relative_to(out).as_posix(): sha256_file(p) for p in sorted(out.rglob("*")) if p.is_file()}
        if there != made:
            names = sorted(k for k in {*there, *made} if there.get(k) != made.get(k))
            raise ValueError(
                f"out={out}: {len(names)} files differ from what would be written ({', '.join(names[:3])}); it was "
                "changed,"
                " or written by another flywheel. Name a new folder"
            )
        return
    for path in sorted(aside.rglob("*"), reverse=True):
        if path.is_dir():
            fsync_dir(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    fsync_dir(aside)
    os.rename(aside, out)
    fsync_dir(out.parent)
