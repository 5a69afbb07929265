"""What a file may make us read and allocate: at most 64 MiB, and 200 times its own bytes; and no file outside of its
folder.

A declaration is compared with the bytes that are there before anything is read. Real recordings stay far below: raw
numbers are 1, camera frames under gzip 2 to 10, constant columns over 1000 but small. A file of 1 MB that unpacks to 1
GB is no recording."""

from __future__ import annotations

import resource
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flywheel.episode import EpisodeError

SPARE, RATIO = 64 * 2**20, 200


def limit(stored: int) -> int:
    """Bytes that `stored` bytes may become."""
    return SPARE + RATIO * stored


def allow(declared: int, stored: int, where: str) -> None:
    """EpisodeError where `declared` bytes are more than `stored` bytes can hold."""
    if declared > limit(stored):
        raise EpisodeError(
            f"{where}: it declares {declared:,} bytes and {stored:,} are stored; expected at most {RATIO} times as "
            f"many and {SPARE:,}. Damaged or a compression bomb: write it again with less compression if it is real"
        )


def inflate(data: bytes, expected: int, where: str, wbits: int = 15) -> None:
    """EpisodeError where zlib's `data` become more than `expected` bytes; they are unpacked a piece at a time."""
    stream, total = zlib.decompressobj(wbits), 0
    while data and not stream.eof and total <= expected:
        total += len(stream.decompress(data, 2**20))
        data = stream.unconsumed_tail
    if total > expected:
        raise EpisodeError(f"{where}: a block unpacks to more than {expected:,} bytes, all that it declares: a bomb")


@contextmanager
def memory(stored: int) -> Iterator[None]:
    """Inside, no more can be allocated than `stored` bytes can hold: for a library that believes lengths that nobody
    can look at.

    A limit of the whole process (Linux; elsewhere nothing), so for a moment only: one value is read.
    """
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[0])
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + limit(stored)
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def inside(root: Path, name: str | Path, where: str) -> Path:
    """The file `name` of the folder `root`; EpisodeError where it is absolute, climbs, or is a link that leaves the
    folder.

    Links of a Hugging Face cache (snapshots/REVISION/... to blobs/HASH beside it) count as inside.
    """
    root, name = Path(root).resolve(), Path(name)
    path = root / (name.relative_to(root) if name.is_absolute() and name.is_relative_to(root) else name)
    real = path.resolve()
    cached = root.parent.name == "snapshots" and real.parent == root.parent.parent / "blobs"
    if ".." in name.parts or not path.is_relative_to(root) or not (real.is_relative_to(root) or cached):
        raise EpisodeError(
            f"{where}: {str(name)[:200]} leaves the folder {root}; expected a file inside of it: not opened"
        )
    return path


def within(root: Path, path: Path) -> bool:
    """Does a file that was found below `root` lie there, links followed?"""
    try:
        inside(root, path, "")
    except (EpisodeError, OSError):
        return False
    return True
