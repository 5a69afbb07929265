"""What follows from the log: a list of rows, one for each time that an episode was added, which serves every version.

    versions   1 ............................. 4096 | 4097 .... 5120 | ... | 5345 .. 5350
               block: columns in arrays or in a mapped file of pages         tail: lists of the newest entries

A block is immutable and follows from its stretch of the log alone. Every BASE versions the tail becomes a block, and
FAN blocks of one size become one, so there are few, and each row is written log(n) times. Nothing is kept for an
episode outside of them: a hash is found by bisection in a block's sorted keys, of which only the pages touched are
read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from flywheel.corpus.block import NUMBERS, TEXT, Block, coded, digests, keys_of, letters, merge, sorted_by, sorted_keys
from flywheel.corpus.pages import Column

BASE, FAN = 32, 4  # versions in the smallest block; blocks of one size that become one


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
        self.flags: list[tuple[str, int, bool]] = []  # hash, version, flagged or unflagged

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
            "hash": digests(self.hashes),
            "local": local,
            "born": born,
            **sorted_keys(digests(self.hashes)),
            **{column: np.asarray(taken[column], dtype) for column, dtype in NUMBERS.items()},
            "start": np.asarray(start, np.int64),
            "version": np.asarray(version, np.int32),
            "name": letters(list(name)),
            "sha256": digests(list(sha256)),
            "known": np.asarray([part is not None for part in known], np.int8),
            "gone": np.asarray([row for row, _ in gone], np.int64),
            "gone_version": np.asarray([entry[0] for _, entry in gone], np.int32),
            "gone_moved": np.asarray([entry[1] for _, entry in gone], np.int8),
            **sorted_by(
                {
                    "expired": letters([*self.expired]),
                    "expired_version": np.asarray([*self.expired.values()], np.int32),
                },
                "expired",
            ),
        }
        for column in TEXT:
            values = list(dict.fromkeys(taken[column]))
            codes = {text: code for code, text in enumerate(values)}
            arrays |= coded(column, [(values, np.asarray([codes[text] for text in taken[column]], np.int32))])
        if self.flags:
            flag, flagged, on = zip(*self.flags, strict=True)
            arrays |= {"flag": digests(list(flag)), "flag_version": np.asarray(flagged, np.int32)}
            arrays |= {"flag_on": np.asarray(on, np.int8)}
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
        tail.flags += [(one, version, why is not None) for one, why in entry.get("flags", {}).items()]
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
        wanted = digests(hashes)
        keys = keys_of(wanted)
        for block in reversed(self.blocks):
            left = np.flatnonzero(found < 0)
            if not len(left):
                break
            found[left] = block.newest(wanted[left], keys[left])
        return found

    def living(self, hashes: list[str]) -> np.ndarray:
        """The row of each hash that is alive at head, else -1."""
        found = self.newest(hashes)
        dead = np.asarray([row in self.tail.gone for row in found.tolist()], bool)
        for block in self.blocks if len(found) else ():
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
        """For each block that has some of these rows (base "part0": parts): it, their positions, their numbers in
        it."""
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

    def rows(self, part: int) -> np.ndarray:
        """The rows of a part."""
        for block, _, (index,) in self.split(np.asarray([part]), "part0"):
            starts = block.columns["start"].slice(index, index + 2).tolist()
            return block.row0 + np.arange(starts[0], starts[1] if len(starts) > 1 else block.rows)
        raise IndexError(part)

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

    def flagged(self, version: int) -> dict[str, int]:
        """{hash: the version that flagged it} of what is flagged in a version."""
        found: dict[str, int] = {}
        for block in self.everything():
            if block.first > version or "flag" not in block.columns:
                continue
            text = block.columns["flag"].all().tobytes().hex()
            events = zip(block.columns["flag_version"].all().tolist(), block.columns["flag_on"].all(), strict=True)
            for index, (at, on) in enumerate(events):
                one = text[64 * index : 64 * index + 64]
                if at <= version and on:
                    found[one] = at
                elif at <= version:
                    found.pop(one, None)
        return found

    def expired(self) -> dict[str, int]:
        """{segment: version whose `expire` named it}."""
        found: dict[str, int] = {}
        for block in self.everything():
            text = block.columns["expired"].all().tobytes().decode()
            versions = block.columns["expired_version"].all().tolist()
            found |= {text[26 * i : 26 * i + 26]: version for i, version in enumerate(versions)}
        return found
