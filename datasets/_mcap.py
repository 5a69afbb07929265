"""MCAP files that nobody vouches for: read from front to back, no record longer than the file, no chunk that is a bomb."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from flywheel import bounds
from flywheel.episode import EpisodeError

MAGIC, CHUNK, FOOTER = b"\x89MCAP0\r\n", 6, 2
UNKNOWN = 2**64 - 1  # zstd's size of a frame that does not say it


class Stream:
    """A file as the reader wants it: front to back (its index is not followed), and no more asked for than there is."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.left = file, size

    def read(self, count: int = -1) -> bytes:
        data = self.file.read(self.left if count < 0 else min(count, self.left))
        self.left -= len(data)
        return data

    def seekable(self) -> bool:
        return False


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """The file, its chunks looked at; EpisodeError where it is no MCAP file or one unpacks to more than it can hold."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        chunks(file, size)
        file.seek(0)
        yield Stream(file, size)


def chunks(file: BinaryIO, size: int) -> None:
    """Walk the records; EpisodeError for one that goes beyond the file, and for a chunk that is a bomb."""
    if file.read(8) != MAGIC:
        raise EpisodeError("not an MCAP file that can be read: it does not begin as one")
    at, total = 8, 0
    while at < size:
        file.seek(at)
        head = file.read(9)
        if len(head) < 9:
            break  # cut short: the reader says so
        kind, length = struct.unpack("<BQ", head)
        if at + 9 + length > size:
            raise EpisodeError(f"not an MCAP file that can be read: a record of {length:,} bytes goes beyond its end")
        if kind == CHUNK:
            total += chunk(file.read(length), size)
            bounds.allow(total, size, "its chunks")
        if kind == FOOTER:
            break
        at += 9 + length


def chunk(data: bytes, size: int) -> int:
    """How many bytes a chunk becomes; EpisodeError where that is more than it declares."""
    if len(data) < 40:
        raise EpisodeError("a chunk that is cut short; the file is damaged")
    _, _, declared, _, letters = struct.unpack_from("<QQQII", data)
    codec = data[32 : 32 + letters]
    packed = data[32 + letters + 8 :]
    bounds.allow(declared, len(packed), "a chunk")
    if codec == b"zstd":
        import zstandard

        told = zstandard.get_frame_parameters(packed).content_size
        if told not in (declared, UNKNOWN, -1):
            raise EpisodeError(f"a chunk that unpacks to {told:,} bytes and declares {declared:,}; the file is damaged")
    elif codec == b"lz4":
        import lz4.frame

        stream, made = lz4.frame.LZ4FrameDecompressor(), 0
        while not stream.eof and made <= declared:
            part = stream.decompress(packed, max_length=2**20)
            if not part and stream.needs_input:
                break
            packed, made = b"", made + len(part)
        if made > declared:
            raise EpisodeError(f"a chunk that unpacks to more than the {declared:,} bytes that it declares: a bomb")
    elif codec == b"":
        return len(packed)
    return declared
