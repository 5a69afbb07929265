"""Zarr stores that nobody vouches for: a folder or a .zip, read-only, from which no other file is opened and nothing is
run.

Each block is looked at before it is unpacked: what its header says it becomes must be what the array declares.
"""

from __future__ import annotations

import bz2
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import bounds
from flywheel.episode import EpisodeError

PACKED = {"blosc", "zstd", "lz4", "zlib", "gzip", "bz2", "lzma"}
FILTERS = {
    "delta",
    "fixedscaleoffset",
    "astype",
    "shuffle",
    "packbits",
    "quantize",
    "bitround",
    "crc32",
    "crc32c",
    "adler32",
}
PLAIN = {"bytes", "transpose", *FILTERS, *PACKED}  # the codecs of Zarr v3 that are read
WINDOW = 2**20
TOLD = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")


class Bytes:
    """The stored bytes by name: `size` of all, `read(name)`."""

    def __init__(self, root: Path):
        self.root = Path(root)
        self.zip = zipfile.ZipFile(self.root) if self.root.is_file() else None
        if self.zip:
            self.size = self.root.stat().st_size
        else:
            found = (p for p in self.root.rglob("*") if p.is_file() and bounds.within(self.root, p))
            self.size = sum(p.stat().st_size for p in found)

    def read(self, name: str) -> bytes | None:
        """The bytes under a name, None where there are none; EpisodeError where they lie elsewhere or are a bomb."""
        if self.zip:
            try:
                about = self.zip.getinfo(name)
            except KeyError:
                return None
            bounds.allow(about.file_size, about.compress_size, name)
            return self.zip.read(about)
        path = bounds.inside(self.root, name, name)
        return path.read_bytes() if path.is_file() else None


def opened(root: Path):
    """The group of a store (zarr.Group), each block checked as it comes, and its Bytes."""
    import zarr
    from zarr.storage import LocalStore, WrapperStore, ZipStore

    stored, blocks = Bytes(root), {}

    class Checked(WrapperStore):
        """Only what Bytes gives, and only blocks that unpack to what their array declares."""

        async def get(self, key, prototype, byte_range=None):
            data = stored.read(key)
            if data is None:
                return None
            folder = key.rpartition("/")[0]
            if folder not in blocks:
                blocks[folder] = declared(stored, key)
            if blocks[folder] and key.rpartition("/")[2] not in TOLD:
                unpacks(data, *blocks[folder], key)
            if byte_range is None:
                return prototype.buffer.from_bytes(data)
            return await self._store.get(key, prototype, byte_range)

    inner = ZipStore(root, mode="r") if Path(root).is_file() else LocalStore(root, read_only=True)
    return zarr.open_group(Checked(inner), mode="r"), stored


def allowed(array: Any, stored: Bytes) -> None:
    """EpisodeError for an array that is no plain numbers, or declares more than is stored."""
    where = f"array {array.name}"
    codecs = codecs_of(array.metadata)
    if "pickle" in codecs:
        raise EpisodeError(f"array {array.name} is kept as pickles, which could run code; write it again as numbers")
    if unknown := [name for name in codecs if name not in PLAIN] or len([n for n in codecs if n in PACKED]) > 1:
        raise EpisodeError(f"{where}: packed by {codecs} ({unknown}); expected one of {', '.join(sorted(PACKED))}")
    if array.dtype.kind not in "biuf":
        raise EpisodeError(f"{where}: it is of {array.dtype}; expected numbers")
    bounds.allow(int(np.prod(array.shape, dtype=object)) * array.dtype.itemsize, stored.size, where)
    bounds.allow(int(np.prod(array.chunks, dtype=object)) * array.dtype.itemsize, stored.size, f"{where}: a block")


def codecs_of(metadata: Any) -> list[str]:
    """The names of all codecs and filters of an array, of Zarr v2 or v3."""
    parts = [*(getattr(metadata, "filters", None) or ()), getattr(metadata, "compressor", None)]
    parts += list(getattr(metadata, "codecs", None) or ())
    names = []
    for part in parts:
        if part is not None:
            told = (
                part.to_dict()["name"] if hasattr(part, "to_dict") else getattr(part, "codec_id", type(part).__name__)
            )
            names.append(str(getattr(part, "codec_id", None) or told).removeprefix("numcodecs."))
    return names


def declared(stored: Bytes, key: str) -> tuple[str, int] | None:
    """(codec, bytes) that a block under a name declares by the JSON of its array, None where it is of none."""
    folder = key.rpartition("/")[0]
    for _ in range(8):  # blocks lie in folders of their own where the separator is a slash
        for file in (".zarray", "zarr.json"):
            text = stored.read(f"{folder}/{file}".lstrip("/"))
            told = json.loads(text) if text else {}
            if "chunks" in told or told.get("node_type") == "array":
                return _block(told)
        if not folder:
            return None
        folder = folder.rpartition("/")[0]
    return None


def _block(told: dict[str, Any]) -> tuple[str, int]:
    """(codec, bytes) of a block, from the array's own JSON."""
    if "chunks" in told:
        shape, kind, codec = told["chunks"], told["dtype"], (told.get("compressor") or {}).get("id", "")
    else:
        shape, kind = told["chunk_grid"]["configuration"]["chunk_shape"], told["data_type"]
        names = [str(part["name"]).removeprefix("numcodecs.") for part in told["codecs"]]
        codec = next((name for name in names if name in PACKED), "")
    width = max(8, np.dtype(kind).itemsize)  # a filter may widen numbers on their way to at most eight bytes
    return codec, int(np.prod(shape, dtype=object)) * width


def unpacks(data: bytes, codec: str, expected: int, where: str) -> None:
    """EpisodeError where a block unpacks to more than `expected` bytes (and a little)."""
    expected += 1024
    size = len(data)
    if codec == "blosc":
        size = int.from_bytes(data[4:8], "little")
    elif codec == "lz4":
        size = int.from_bytes(data[:4], "little")
    elif codec == "zstd":
        size = _zstd(data)
    elif codec in ("zlib", "gzip"):
        bounds.inflate(data, expected, where, 15 if codec == "zlib" else 31)
    elif codec in ("bz2", "lzma"):
        stream = bz2.BZ2Decompressor() if codec == "bz2" else lzma.LZMADecompressor(memlimit=bounds.SPARE)
        size = 0
        while not stream.eof and size <= expected:
            part = stream.decompress(data if stream.needs_input else b"", WINDOW)
            if not part and stream.needs_input:
                break
            data, size = b"", size + len(part)
    if size > expected:
        raise EpisodeError(
            f"{where}: a block that unpacks to {size:,} bytes or more; its array declares {expected:,}: a bomb"
        )


def _zstd(data: bytes) -> int:
    """The size that a zstd frame says it becomes (RFC 8878, 3.1.1.1); without one, the most that it could be refused
    for."""
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        return len(data)
    flag, single = data[4] >> 6, data[4] >> 5 & 1
    at = 5 + (not single) + (0, 1, 2, 4)[data[4] & 3]
    wide = (1 if single else 0, 2, 4, 8)[flag]
    if not wide:
        return 2**63  # of unknown size: nothing that writes Zarr makes such
    return int.from_bytes(data[at : at + wide], "little") + (256 if wide == 2 else 0)
