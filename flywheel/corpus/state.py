"""What follows from the log: a list of rows, one for each time that an episode was added, which serves every version.

    versions   1 ............................. 4096 | 4097 .... 5120 | ... | 5345 .. 5350
               block: columns in arrays or in a mapped file of pages         tail: lists of the newest entries

A block is immutable and follows from its stretch of the log alone. Every BASE versions the tail becomes a block, and FAN
blocks of one size become one, so there are few, and each row is written log(n) times. Nothing is kept for an episode
outside of them: a hash is found by bisection in a block's sorted keys, of which only the pages touched are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flywheel.corpus.pages import PAGE, Column

BASE, FAN = 32, 4  # versions in the smallest block; blocks of one size that become one
TEXT = ("task", "origin")
NUMBERS = {"seed": np.int64, "success": np.int8, "terminated": np.int8, "fps": np.float64, "length": np.int32, "return_": np.float64}  # fmt: skip
KEYS = PAGE // 8  # sorted keys in a page
TABLES = {"rows": ("hash", "local", "born", *TEXT, *NUMBERS), "parts": ("start", "version", "name", "sha256", "known")}


@dataclass
class Block:
    """The versions first..last: what they added and removed.

    a row    hash [N, 32] uint8, local (index in its segment), born (version that first added it), and where its part is
             `known` the episode's task, origin (codes into *_values, JSON text), seed, success, terminated, fps, length, return_
    a part   (segment) start (its first row), version, name [P, 26] and sha256 [P, 32] uint8, known
    key      [N] uint64, first 8 bytes of the hashes, sorted; order [N] their rows; fence, each page's first key
    gone     rows of this or an earlier block that these versions removed, sorted; gone_version; gone_moved (compact)
    expired  [X, 26] uint8 segments that an `expire` named, sorted; expired_version
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

    def newest(self, hashes: np.ndarray) -> np.ndarray:
        """The newest row of this block with each of the hashes [n, 32], -1 where it has none."""
        keys = _keys(hashes)
        found = np.full(len(keys), -1)
        pages = np.searchsorted(self.columns["fence"].all(), keys, "right") - 1
        for page in np.unique(pages[pages >= 0]):
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


def _keys(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes[:, :8]).view(">u8").ravel().astype(np.uint64)


def digests(hashes: list[str]) -> np.ndarray:
    """[n, 32] uint8 of hexadecimal hashes."""
    return np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(-1, 32)


def letters(names: list[str]) -> np.ndarray:
    """[n, 26] uint8 of segment names."""
    return np.frombuffer("".join(names).encode(), np.uint8).reshape(-1, 26)


def _sorted_keys(hashes: np.ndarray) -> dict[str, np.ndarray]:
    keys = _keys(hashes)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    return {"key": keys, "order": order.astype(np.int32), "fence": keys[::KEYS]}


def _sorted_by(columns: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    values = columns[name]
    order = np.argsort(values.view(f"S{values.shape[1]}").ravel() if values.ndim == 2 else values, kind="stable")
    return {key: value[order] for key, value in columns.items()}


def merge(blocks: list[Block]) -> Block:
    """One block of several that follow each other."""
    whole = {name: [block.columns[name].all() for block in blocks] for name in blocks[0].columns}
    columns = {}
    for name in (*TABLES["rows"], *TABLES["parts"]):
        if name not in TEXT:
            columns[name] = np.concatenate(whole[name])
    row, starts = 0, []
    for block, start in zip(blocks, whole["start"], strict=True):
        starts.append(start + row)
        row += block.rows
    columns["start"] = np.concatenate(starts)
    for name in TEXT:
        columns |= _coded(name, [(block.values(name), codes) for block, codes in zip(blocks, whole[name], strict=True)])
    columns |= _sorted_keys(columns["hash"])
    for group in (("gone", "gone_version", "gone_moved"), ("expired", "expired_version")):
        columns |= _sorted_by({name: np.concatenate(whole[name]) for name in group}, group[0])
    first, last = blocks[0], blocks[-1]
    parts = sum(block.parts for block in blocks)
    held = {name: Column(value) for name, value in columns.items()}
    return Block(first.first, last.last, first.parent, last.tip, row, parts, held, None, first.row0, first.part0)


def _coded(name: str, several: list[tuple[list[str], np.ndarray]]) -> dict[str, np.ndarray]:
    """Codes of several lists of texts as codes of one."""
    values: dict[str, int] = {}
    codes = []
    for texts, old in several:
        new = np.asarray([values.setdefault(text, len(values)) for text in texts], np.int32)
        codes.append(new[old] if len(new) else old)
    return {name: np.concatenate(codes), f"{name}_values": np.frombuffer(json.dumps([*values]).encode(), np.uint8)}


class Tail:
    """The newest entries as lists: what a block has in columns. Row and part numbers are of the whole log."""

    def __init__(self, first: int, parent: str, row0: int, part0: int):
        self.first, self.parent, self.tip, self.row0, self.part0 = first, parent, parent, row0, part0
        self.last = first - 1
        self.hashes: list[str] = []
        self.newest: dict[str, int] = {}
        self.parts: list[tuple[int, int, str, str]] = []  # start in the tail, version, name, sha256
        self.rows: list[tuple[int, int]] = []  # local, born
        self.gone: dict[int, tuple[int, bool]] = {}
        self.expired: dict[str, int] = {}

    def block(self, columns: Callable[[str, str], dict[str, list] | None] | None = None) -> Block:
        """The tail as a block; with the episodes' columns, where `columns(name, sha256)` of a segment gives them."""
        start, version, name, sha256 = zip(*self.parts, strict=True) if self.parts else ((),) * 4
        local, born = np.asarray(self.rows, np.int32).reshape(-1, 2).T
        known = [columns(*pair) if columns else None for pair in zip(name, sha256, strict=True)]
        taken: dict[str, list] = {column: [] for column in (*TEXT, *NUMBERS)}
        for index, part in enumerate(known):
            end = start[index + 1] if index + 1 < len(start) else len(self.hashes)
            for column, values in taken.items():
                nothing = "" if column in TEXT else 0
                values += [nothing if part is None else part[column][i] for i in local[start[index] : end]]
        taken["seed"] = [-1 if seed is None else seed for seed in taken["seed"]]
        taken["success"] = [-1 if done is None else done for done in taken["success"]]
        gone = sorted(self.gone.items())
        arrays = {
            "hash": digests(self.hashes), "local": local, "born": born, **_sorted_keys(digests(self.hashes)),
            **{column: np.asarray(taken[column], dtype) for column, dtype in NUMBERS.items()},
            "start": np.asarray(start, np.int64), "version": np.asarray(version, np.int32),
            "name": letters(list(name)), "sha256": digests(list(sha256)),
            "known": np.asarray([part is not None for part in known], np.int8),
            "gone": np.asarray([row for row, _ in gone], np.int64),
            "gone_version": np.asarray([entry[0] for _, entry in gone], np.int32),
            "gone_moved": np.asarray([entry[1] for _, entry in gone], np.int8),
            **_sorted_by({"expired": letters([*self.expired]), "expired_version": np.asarray([*self.expired.values()], np.int32)}, "expired"),
        }  # fmt: skip
        for column in TEXT:
            values = list(dict.fromkeys(taken[column]))
            codes = {text: code for code, text in enumerate(values)}
            arrays |= _coded(column, [(values, np.asarray([codes[text] for text in taken[column]], np.int32))])
        held = {name: Column(value) for name, value in arrays.items()}
        counts = len(self.hashes), len(self.parts)
        return Block(self.first, self.last, self.parent, self.tip, *counts, held, None, self.row0, self.part0)


class State:
    """Blocks and tail. `columns(segment name, sha256)` gives a segment's columns, or None where they cannot be read."""

    def __init__(self, corpus_id: str, columns: Callable[[str, str], dict[str, list] | None]):
        self.columns = columns
        self.blocks: list[Block] = []
        self.tail = Tail(1, corpus_id, 0, 0)
        self._block: Block | None = None  # of the tail as it is

    @property
    def head(self) -> int:
        return self.tail.last

    @property
    def tip(self) -> str:
        """Hash of the newest entry; the first entry's parent is the corpus id."""
        return self.tail.tip

    def everything(self) -> list[Block]:
        self._block = self._block or self.tail.block()
        return [*self.blocks, self._block]

    def use(self, block: Block) -> None:
        """Go on behind a block that follows the last one."""
        block.row0, block.part0 = self.tail.row0, self.tail.part0
        self.blocks.append(block)
        self.tail = Tail(block.last + 1, block.tip, block.row0 + block.rows, block.part0 + block.parts)
        self.tail.last, self._block = block.last, None

    def apply(self, entry: dict[str, Any], digest: str) -> None:
        """Take the next entry in; KeyError where it removes what is not alive."""
        tail, version = self.tail, entry["version"]
        rows, moved = self.living(entry["remove"]), entry["op"] == "compact"
        if (rows < 0).any():
            raise KeyError(entry["remove"][int(np.argmin(rows))])
        born = dict(zip(entry["remove"], self.take("born", rows).tolist(), strict=True)) if moved else {}
        tail.gone |= dict.fromkeys(rows.tolist(), (version, moved))
        tail.expired |= dict.fromkeys(entry.get("expired", ()), version)
        for part in entry["add"]:
            tail.parts.append((len(tail.hashes), version, part["segment"], part["sha256"]))
            for index, found in enumerate(part["hashes"]):
                if found is not None:  # in the segment, but another writer had added the same episode first
                    tail.newest[found] = tail.row0 + len(tail.hashes)
                    tail.hashes.append(found)
                    tail.rows.append((index, born.get(found, version)))
        tail.last, tail.tip, self._block = version, digest, None
        if version % BASE == 0:
            self._seal()

    def _seal(self) -> None:
        block = self.tail.block(self.columns)
        self.use(block)
        while (
            len(self.blocks) >= FAN
            and block.last % (block.span * FAN) == 0
            and all(other.span == block.span for other in self.blocks[-FAN:])
        ):
            block = merge(self.blocks[-FAN:])
            self.blocks[-FAN:] = [block]

    # -- hashes -------------------------------------------------------------------------------------------------------

    def newest(self, hashes: list[str]) -> np.ndarray:
        """The newest row of each hash, -1 where the log has never seen it."""
        found = np.asarray([self.tail.newest.get(one, -1) for one in hashes], np.int64)
        for block in reversed(self.blocks):
            left = np.flatnonzero(found < 0)
            if len(left):
                found[left] = block.newest(digests([hashes[i] for i in left]))
        return found

    def living(self, hashes: list[str]) -> np.ndarray:
        """The row of each hash that is alive at head, else -1."""
        found = self.newest(hashes)
        dead = np.asarray([row in self.tail.gone for row in found.tolist()], bool)
        for block in self.blocks if (found >= 0).any() else ():
            gone = block.columns["gone"].all()
            if len(gone):
                dead |= gone[np.minimum(np.searchsorted(gone, found), len(gone) - 1)] == found
        return np.where(dead, -1, found)

    def removed(self, row: int) -> tuple[int, bool] | None:
        """(version, whether a compact moved it) where a row is not alive at head."""
        if row in self.tail.gone:
            return self.tail.gone[row]
        for block in reversed(self.blocks):
            if block.row0 + block.rows > row:  # a removal comes with or after what it removes
                found = block.removed(row)
                if found:
                    return found
        return None

    def starting(self, prefix: str) -> dict[str, int]:
        """{hash: newest row} of everything whose hash starts so."""
        found = {one: row for one, row in self.tail.newest.items() if one.startswith(prefix)}
        for block in reversed(self.blocks):
            rows = np.sort(block.between(int(prefix[:16].ljust(16, "0"), 16), int(prefix[:16].ljust(16, "f"), 16)))
            for row, one in zip(rows[::-1].tolist(), self.hashes(rows[::-1]), strict=True):
                if one.startswith(prefix):
                    found.setdefault(one, row)
        return found

    def hashes(self, rows: np.ndarray) -> list[str]:
        text = self.take("hash", rows).tobytes().hex()
        return [text[at : at + 64] for at in range(0, len(text), 64)]

    # -- rows ---------------------------------------------------------------------------------------------------------

    def alive(self, version: int) -> np.ndarray:
        """[E] int64, the rows of a version, in the order in which they were added."""
        end = self.end(version)
        gone = [np.zeros(0, np.int64)]
        for block in self.everything():
            if block.first <= version:
                removed = block.columns["gone"].all()
                gone.append(removed[block.columns["gone_version"].all() <= version])
        gone = np.concatenate(gone)
        if not len(gone):
            return np.arange(end)
        keep = np.ones(end, bool)
        keep[gone] = False
        return np.flatnonzero(keep)

    def end(self, version: int) -> int:
        """How many rows the versions up to this one have added."""
        end = 0
        for block in self.everything():
            if block.last <= version:
                end = block.row0 + block.rows
            elif block.first <= version:
                parts = int(np.searchsorted(block.columns["version"].all(), version, "right"))
                starts = block.columns["start"].all()
                end = block.row0 + (int(starts[parts]) if parts < len(starts) else block.rows)
        return end

    @property
    def living_count(self) -> int:
        """Episodes at head."""
        return self.tail.row0 + len(self.tail.hashes) - sum(len(b.columns["gone"]) for b in self.everything())

    def split(self, numbers: np.ndarray, base: str = "row0") -> Iterator[tuple[Block, Any, np.ndarray]]:
        """For each block that has some of these rows (base "part0": parts): it, their positions, their numbers in it."""
        ordered = len(numbers) < 2 or bool((numbers[1:] >= numbers[:-1]).all())
        order = slice(None) if ordered else np.argsort(numbers, kind="stable")
        sequence, at = numbers[order], 0
        for block in self.everything():
            first = getattr(block, base)
            count = block.rows if base == "row0" else block.parts
            end = int(np.searchsorted(sequence, first + count))
            if end > at:
                yield block, slice(at, end) if ordered else order[at:end], sequence[at:end] - first
            at = end

    def take(self, name: str, rows: np.ndarray, base: str = "row0") -> np.ndarray:
        """A column of rows (base "part0": of parts)."""
        like = self.everything()[-1].columns[name].values
        out = np.empty((len(rows), *like.shape[1:]), like.dtype)
        for block, where, index in self.split(rows, base):
            out[where] = block.columns[name].take(index)
        return out

    def parts(self, rows: np.ndarray) -> np.ndarray:
        """The part (a segment and the version that added it) of each row."""
        out = np.empty(len(rows), np.int64)
        for block, where, index in self.split(rows):
            out[where] = block.part0 + np.searchsorted(block.columns["start"].all(), index, "right") - 1
        return out

    def added(self, rows: np.ndarray) -> np.ndarray:
        """The version that added each row; of an episode that a compact moved, that of the compact."""
        return self.take("version", self.parts(rows), "part0").astype(np.int64)

    def segment(self, part: int) -> tuple[str, str]:
        """Name of a part's segment, and sha256 of its episodes.json."""
        one = np.asarray([part])
        return self.take("name", one, "part0").tobytes().decode(), self.take("sha256", one, "part0").tobytes().hex()

    def segments(self, parts: np.ndarray | None = None) -> list[str]:
        """The names of the segments of parts, or of all that any version has added."""
        parts = np.arange(self.tail.part0 + len(self.tail.parts)) if parts is None else parts
        text = self.take("name", parts, "part0").tobytes().decode()
        return [text[at : at + 26] for at in range(0, len(text), 26)]

    def expired(self) -> dict[str, int]:
        """{segment: version whose `expire` named it}."""
        found: dict[str, int] = {}
        for block in self.everything():
            text = block.columns["expired"].all().tobytes().decode()
            versions = block.columns["expired_version"].all().tolist()
            found |= {text[26 * i : 26 * i + 26]: version for i, version in enumerate(versions)}
        return found
