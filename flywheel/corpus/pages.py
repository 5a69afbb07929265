"""Columns of numbers in one immutable file that is read through a memory map, page by page.

The layout is safetensors: 8 bytes length of the header, a JSON header, the columns one after the other. A page is 64
KiB of one column. Its crc32 is compared when it is first touched; the crcs are a column themselves, whose crc32 stands
in the header, and the header's sha256 is in the file's name. So a flipped byte anywhere is found before it is used, and
opening a file of a gigabyte costs a few kilobytes."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

PAGE = 65536
DTYPES = {
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "I64": np.int64,
    "U32": np.uint32,
    "U64": np.uint64,
    "F64": np.float64,
}


class Column:
    """An array [N, ...] in memory, or in a file with a checksum a page; `damaged()` raises where one is wrong."""

    def __init__(self, values: np.ndarray, crcs: np.ndarray | None = None, damaged: Callable[[], None] | None = None):
        self.values, self.crcs, self.damaged = values, crcs, damaged
        self.row = max(1, values.nbytes // max(1, len(values)))  # bytes
        self.good = np.full(0 if crcs is None else len(crcs), False)
        self.left = len(self.good)  # pages that nobody has touched yet

    def __len__(self) -> int:
        return len(self.values)

    def slice(self, low: int, high: int) -> np.ndarray:
        """Rows low to high."""
        if self.left:
            self._check(np.arange(low * self.row // PAGE, -(-min(high, len(self)) * self.row // PAGE)))
        return self.values[low:high]

    def all(self) -> np.ndarray:
        return self.slice(0, len(self))

    def take(self, index: np.ndarray) -> np.ndarray:
        """Rows by their numbers [n]."""
        if self.left:
            touched = np.zeros(len(self.good), bool)
            touched[index * self.row // PAGE] = True
            touched[(index * self.row + self.row - 1) // PAGE] = True
            self._check(np.flatnonzero(touched))
        return self.values[index]

    def _check(self, pages: np.ndarray) -> None:
        data = self.values.reshape(-1).view(np.uint8)
        for page in pages[~self.good[pages]]:
            if zlib.crc32(data[page * PAGE : (page + 1) * PAGE]) != self.crcs[page]:
                self.damaged()
            self.good[page] = True
            self.left -= 1


def _crcs(values: np.ndarray) -> np.ndarray:
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return np.asarray([zlib.crc32(data[at : at + PAGE]) for at in range(0, len(data), PAGE)], np.uint32)


def encode(columns: dict[str, np.ndarray], about: dict[str, Any]) -> tuple[str, bytes]:
    """(16 digits of the header's sha256, the file's bytes) of `columns` and the JSON value `about`."""
    from safetensors.numpy import save

    crcs = np.concatenate([np.zeros(0, np.uint32), *(_crcs(columns[name]) for name in sorted(columns))])
    text = {"about": json.dumps({"crc32": zlib.crc32(crcs), **about}, sort_keys=True)}
    data = save({name: np.ascontiguousarray(value) for name, value in columns.items()} | {"crc32": crcs}, text)
    return hashlib.sha256(data[: 8 + int.from_bytes(data[:8], "little")]).hexdigest()[:16], data


def decode(data, name: str, damaged: Callable[[], None]) -> tuple[Columns, dict[str, Any]]:
    """The columns of a file's bytes (or memory map), and what was said about them; ValueError where it is not whole.

    `name` is the file's, which ends in -<digest>.safetensors.
    """
    size = 8 + int.from_bytes(data[:8], "little")
    if hashlib.sha256(data[:size]).hexdigest()[:16] != name[-28:-12]:
        raise ValueError("the header is not the one that the name promises")
    header = json.loads(data[8:size])
    about = json.loads(header.pop("__metadata__")["about"])
    if len(data) != size + max(entry["data_offsets"][1] for entry in header.values()):
        raise ValueError(f"{len(data)} bytes")
    columns = Columns(header, np.frombuffer(data, np.uint8)[size:], damaged)
    if zlib.crc32(columns.array("crc32")) != about.pop("crc32"):
        raise ValueError("the checksums changed")
    return columns, about


class Columns(dict):
    """{name: Column}, each made when it is first asked for."""

    def __init__(self, header: dict[str, Any], raw: np.ndarray, damaged: Callable[[], None]):
        super().__init__()
        self.header, self.raw, self.damaged = header, raw, damaged

    def __contains__(self, name: object) -> bool:
        return name in self.header

    def array(self, name: str) -> np.ndarray:
        first, last = self.header[name]["data_offsets"]
        return self.raw[first:last].view(DTYPES[self.header[name]["dtype"]]).reshape(self.header[name]["shape"])

    @cached_property
    def _first(self) -> dict[str, int]:
        """Where the checksums of each column's pages begin among all."""
        found, at = {}, 0
        for name in sorted(self.header.keys() - {"crc32"}):
            begin, end = self.header[name]["data_offsets"]
            found[name] = at
            at += -(-(end - begin) // PAGE)
        return found

    def __missing__(self, name: str) -> Column:
        values, at = self.array(name), self._first[name]
        crcs = self.array("crc32")[at : at - (-values.nbytes // PAGE)]
        return self.setdefault(name, Column(values, crcs, self.damaged))

    def load(self) -> dict[str, Column]:
        """All of them."""
        return {name: self[name] for name in self.header if name != "crc32"}
