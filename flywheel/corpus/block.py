"""A block: what a stretch of the log adds and removes, in columns. Immutable; equal stretches make equal blocks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.corpus.pages import PAGE, Column

TEXT = ("task", "origin")
NUMBERS = {
    "seed": np.int64,
    "success": np.int8,
    "terminated": np.int8,
    "fps": np.float64,
    "length": np.int32,
    "return_": np.float64,
}
KEYS = PAGE // 8  # sorted keys in a page
ROWS = ("hash", "local", "born", *NUMBERS)
PARTS = ("version", "name", "sha256", "known")
EVENTS = (("gone", "gone_version", "gone_moved"), ("expired", "expired_version"))
FLAGS = ("flag", "flag_version", "flag_on")  # in the order of the versions
COLUMNS = (*ROWS, *PARTS, "start", *TEXT, *EVENTS[0], *EVENTS[1])


@dataclass
class Block:
    """The versions first..last: what they added and removed.

    a row    hash [N, 32] uint8, local (index in its segment), born (version that first added it), and where its part is
             `known` the episode's task, origin (codes into *_values, JSON text), seed, success, terminated, fps,
             length, return_
    a part   (segment) start (its first row), version, name [P, 26] and sha256 [P, 32] uint8, known
    key      [N] uint64, first 8 bytes of the hashes, sorted; order [N] their rows; fence, each page's first key
    gone     rows of this or an earlier block that these versions removed, sorted; gone_version; gone_moved (compact)
    expired  [X, 26] uint8 segments that an `expire` named, sorted; expired_version
    flag     [F, 32] uint8 hashes that these versions flagged (flag_on 1) or unflagged (0); flag_version; only where
             there are any
    """

    first: int
    last: int
    parent: str
    tip: str
    rows: int
    parts: int
    columns: dict[str, Column]
    file: str | None = None
    row0: int = 0  # rows and parts before this block
    part0: int = 0

    @property
    def span(self) -> int:
        return self.last - self.first + 1

    def about(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("first", "last", "parent", "tip", "rows", "parts")}

    def values(self, name: str) -> list[str]:
        """The texts that the codes of a column stand for."""
        return json.loads(self.columns[f"{name}_values"].all().tobytes() or b"[]")

    def newest(self, hashes: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The newest row of this block with each of the hashes [n, 32], keys [n]; -1 where it has none."""
        found = np.full(len(keys), -1)
        pages = np.searchsorted(self.columns["fence"].all(), keys, "right") - 1
        for page in set(pages.tolist()) - {-1}:
            mine = np.flatnonzero(pages == page)
            at = np.searchsorted(self.columns["key"].slice(page * KEYS, (page + 1) * KEYS), keys[mine], "right") - 1
            for which, position in zip(mine, at + page * KEYS, strict=True):
                while position >= 0 and self.columns["key"].slice(position, position + 1)[0] == keys[which]:
                    row = int(self.columns["order"].slice(position, position + 1)[0])
                    if (self.columns["hash"].slice(row, row + 1)[0] == hashes[which]).all():
                        found[which] = row + self.row0
                        break
                    position -= 1  # another hash with the same 8 bytes
        return found

    def between(self, low: int, high: int) -> np.ndarray:
        """The rows whose key is in [low, high]."""
        fence = self.columns["fence"].all()
        first = max(0, int(np.searchsorted(fence, np.uint64(low))) - 1) * KEYS
        last = int(np.searchsorted(fence, np.uint64(high), "right")) * KEYS
        keys = self.columns["key"].slice(first, last)
        hit = np.flatnonzero((keys >= np.uint64(low)) & (keys <= np.uint64(high)))
        return self.columns["order"].take(first + hit).astype(np.int64) + self.row0

    def removed(self, row: int) -> tuple[int, bool] | None:
        """(version, whether by a compact) of the removal of a row by one of these versions."""
        gone = self.columns["gone"].all()
        at = int(np.searchsorted(gone, row))
        if at == len(gone) or gone[at] != row:
            return None
        return int(self.columns["gone_version"].all()[at]), bool(self.columns["gone_moved"].all()[at])


def keys_of(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes[:, :8]).view(">u8").ravel().astype(np.uint64)


def digests(hashes: list[str]) -> np.ndarray:
    """[n, 32] uint8 of hexadecimal hashes."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)


def letters(names: list[str]) -> np.ndarray:
    """[n, 26] uint8 of segment names."""
    return np.frombuffer("".join(names).encode(), np.uint8).reshape(-1, 26)


def sorted_keys(hashes: np.ndarray) -> dict[str, np.ndarray]:
    keys = keys_of(hashes)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    return {"key": keys, "order": order.astype(np.int32), "fence": keys[::KEYS]}


def sorted_by(columns: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    values = columns[name]
    order = np.argsort(values.view(f"S{values.shape[1]}").ravel() if values.ndim == 2 else values, kind="stable")
    return {key: value[order] for key, value in columns.items()}


def merge(blocks: list[Block]) -> Block:
    """One block of several that follow each other."""
    whole = {name: [block.columns[name].all() for block in blocks] for name in COLUMNS}
    columns = {name: np.concatenate(whole[name]) for name in (*ROWS, *PARTS)}
    row, starts = 0, []
    for block, start in zip(blocks, whole["start"], strict=True):
        starts.append(start + row)
        row += block.rows
    columns["start"] = np.concatenate(starts)
    for name in TEXT:
        columns |= coded(name, [(block.values(name), codes) for block, codes in zip(blocks, whole[name], strict=True)])
    columns |= sorted_keys(columns["hash"])
    for group in EVENTS:
        columns |= sorted_by({name: np.concatenate(whole[name]) for name in group}, group[0])
    if flagged := [block for block in blocks if "flag" in block.columns]:
        columns |= {name: np.concatenate([block.columns[name].all() for block in flagged]) for name in FLAGS}
    first, last = blocks[0], blocks[-1]
    parts = sum(block.parts for block in blocks)
    held = {name: Column(value) for name, value in columns.items()}
    return Block(first.first, last.last, first.parent, last.tip, row, parts, held, None, first.row0, first.part0)


def coded(name: str, several: list[tuple[list[str], np.ndarray]]) -> dict[str, np.ndarray]:
    """Codes of several lists of texts as codes of one."""
    values: dict[str, int] = {}
    codes = []
    for texts, old in several:
        new = np.asarray([values.setdefault(text, len(values)) for text in texts], np.int32)
        codes.append(new[old] if len(new) else old)
    return {name: np.concatenate(codes), f"{name}_values": np.frombuffer(json.dumps([*values]).encode(), np.uint8)}
