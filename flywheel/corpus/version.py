"""A version of the corpus, or a selection from one: which episodes, their columns, and their arrays when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus import statistics
from flywheel.corpus.block import TEXT
from flywheel.corpus.segment import COLUMNS, CorpusError
from flywheel.episode import Episode

if TYPE_CHECKING:
    from flywheel.corpus import Corpus

NAMES = (*COLUMNS, "added", "cameras", "flagged")


class Table(Mapping):
    """Columns of some rows, each read once, when it is first asked for."""

    def __init__(self, corpus: Corpus, rows: np.ndarray, number: int):
        self.corpus, self.rows, self.number = corpus, rows, number
        self._read: dict[str, np.ndarray] = {}
        self._codes: dict[str, tuple[np.ndarray, list[str]]] = {}

    def codes(self, name: str) -> tuple[np.ndarray, list[str]]:
        """A column of texts as codes [E] and what they stand for."""
        if name not in self._codes:
            if name == "hash":
                hashes = self.corpus.history.state.hashes(self.rows)
                self._codes[name] = np.arange(len(hashes)), hashes
            elif name in ("cameras", "flagged"):
                texts, codes = np.unique(self[name].astype(str), return_inverse=True)
                self._codes[name] = codes, texts.tolist()
            else:
                self._codes[name] = self.corpus.reader.column(name, self.rows)
        return self._codes[name]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in NAMES:
            raise KeyError(name)
        if name not in self._read:
            if name in TEXT:
                codes, values = self.codes(name)
                self._read[name] = np.asarray(values, str)[codes] if values else np.zeros(0, "U1")
            elif name == "flagged":
                self._read[name] = self._flagged()
            else:
                self._read[name] = self.corpus.reader.column(name, self.rows)
        return self._read[name]

    def _flagged(self) -> np.ndarray:
        """Why each episode is flagged in this version, "" where it is not."""
        out = np.full(len(self.rows), "", object)
        flagged = self.corpus.history.state.flagged(self.number)
        if not flagged:
            return out
        why = {at: self.corpus.history.entry(at)["flags"] for at in set(flagged.values())}
        for index, one in enumerate(self.corpus.history.state.hashes(self.rows)):
            if one in flagged:
                out[index] = why[flagged[one]][one]
        return out

    def __contains__(self, name: object) -> bool:
        return name in NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(NAMES)

    def __len__(self) -> int:
        return len(NAMES)


class Version:
    """Episodes of one version, in append order; `select` gives a subset with the same interface.

    number   the version's number (a subset keeps it); differs between copies of a corpus
    id       sha256 over the sorted episode hashes: equal content, equal id, on every machine and in any order
    rows     [E] int64, positions in the corpus's list of everything ever added (never reused)
    ref      what Corpus.at answers with these episodes or more: the number, or the name of a view
    """

    def __init__(self, corpus: Corpus, number: int, rows: np.ndarray, ref: int | str | None = None):
        self.corpus = corpus
        self.number = number
        self.rows = rows
        self.ref = number if ref is None else ref

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Version {self.number} ({self.id[:12]}): {len(self)} episodes>"

    @cached_property
    def hashes(self) -> list[str]:
        """Content hash of each episode (no segment is opened for this)."""
        return self.corpus.history.state.hashes(self.rows)

    def segments(self) -> list[str]:
        """The names of the segments that hold the episodes."""
        state = self.corpus.history.state
        return state.segments(np.unique(state.parts(self.rows)))

    @cached_property
    def id(self) -> str:
        return hashlib.sha256("\n".join(sorted(self.hashes)).encode()).hexdigest()

    @cached_property
    def table(self) -> Table:
        """Columns over the episodes, [E] each, a mapping that reads one when it is first asked for.

        hash task origin  str;  seed int64, -1 where unknown;  success int8, 1 0 or -1 where unknown;  terminated bool;
        length int64 (T);  fps return_ float64;  added int64 (the version that added it);  meta dicts (object);
        cameras texts (object), the names of an episode's cameras with spaces between them;  flagged texts (object),
        why an episode is to be left out of training, "" where it is not
        """
        return Table(self.corpus, self.rows, self.number)

    def select(
        self, where: Callable[[dict[str, np.ndarray]], np.ndarray] | np.ndarray | None = None, **filters: Any
    ) -> Version:
        """The episodes that pass every condition, in the same order.

        where     a boolean mask [E], positions [N], or a function of `table` that returns one of them
        filters   column=value; text takes a pattern or a list (origin="human:*", cameras="*wrist*"), `success` and
                  `terminated` True, False (or None), others a value or a list of values
        """
        keep = np.ones(len(self), bool)
        for name, wanted in filters.items():
            keep &= self._matches(name, wanted)
        if where is not None:
            chosen = np.asarray(where(self.table) if callable(where) else where)
            if chosen.dtype == bool:
                if chosen.shape != keep.shape:
                    raise ValueError(f"select: a mask of {list(chosen.shape)} for {len(self)} episodes")
                keep &= chosen
            else:
                positions = chosen.astype(np.int64)
                return Version(self.corpus, self.number, self.rows[positions[keep[positions]]], self.ref)
        return Version(self.corpus, self.number, self.rows[keep], self.ref)

    def canonical(self) -> Version:
        """The same episodes sorted by hash: an order that does not depend on when they were added."""
        order = np.argsort(np.asarray(self.hashes, "U64"), kind="stable")
        return Version(self.corpus, self.number, self.rows[order], self.ref)

    def read(self, which: str | int) -> Episode:
        """The episode at a position, or with a hash (a unique prefix of at least 6 digits), equal to the last bit."""
        if isinstance(which, str):
            which = self._position(which)
        return self.corpus.reader.episode(int(self.rows[which]))

    def __iter__(self) -> Iterator[Episode]:
        return (self.corpus.reader.episode(int(row)) for row in self.rows)

    def statistics(self, field: str) -> dict[str, np.ndarray]:
        """count, mean, M2, std, min, max ([D] each) of a stream over all rows, merged from what the segments keep."""
        parts = np.stack([self.corpus.reader.statistics(int(row), field) for row in self.rows]) if len(self) else []
        return statistics.merge(parts, self.table["length"] + field.startswith("obs."))

    def summary(self) -> dict[str, Any]:
        """{"episodes", "steps", "task": {name: n}, "origin": {...}, "success": {"true"|"false"|"unknown": n}}."""
        table = self.table
        counts: dict[str, Any] = {"episodes": len(self), "steps": int(table["length"].sum())}
        for name in TEXT:
            codes, values = table.codes(name)
            number = dict(zip(values, np.bincount(codes, minlength=len(values)).tolist(), strict=True))
            counts[name] = {value: number[value] for value in sorted(values) if number[value]}
        names = {1: "true", 0: "false", -1: "unknown"}
        counts["success"] = {names[code]: int(n) for code in names if (n := np.count_nonzero(table["success"] == code))}
        return counts

    def cameras(self) -> dict[str, dict[str, Any]]:
        """{name: {"codec", "shape", "episodes", "bytes"}} of the cameras, a list where codecs or shapes differ;
        bytes are those of the segments that the episodes lie in (see Segment.cameras)."""
        found: dict[str, dict[str, Any]] = {}
        parts, counts = np.unique(self.corpus.history.state.parts(self.rows), return_counts=True)
        for part, count in zip(parts.tolist(), counts.tolist(), strict=True):
            for name, about in self.corpus.reader.segment(part).cameras().items():
                one = found.setdefault(name.removeprefix("obs."), {"codec": [], "shape": [], "episodes": 0, "bytes": 0})
                for key in ("codec", "shape"):
                    one[key] += [about[key]] if about[key] not in one[key] else []
                one["episodes"] += count
                one["bytes"] += about["bytes"]
        for one in found.values():
            one |= {key: one[key][0] for key in ("codec", "shape") if len(one[key]) == 1}
        return found

    def _position(self, prefix: str) -> int:
        found = [i for i, name in enumerate(self.hashes) if name.startswith(prefix)] if len(prefix) >= 6 else []
        if len(found) != 1:
            what = f"matches {len(found)} of" if len(prefix) >= 6 else "is shorter than 6 digits; in"
            raise CorpusError(f"episode {prefix!r} {what} the {len(self)} episodes of version {self.number}")
        return found[0]

    def _matches(self, name: str, wanted: Any) -> np.ndarray:
        if name not in self.table:
            raise ValueError(f"select: no column {name!r}. There are: {', '.join(sorted(self.table))}")
        options = list(wanted) if isinstance(wanted, (list, tuple, set, np.ndarray)) else [wanted]
        if name in ("hash", "cameras", "flagged", *TEXT):
            codes, values = self.table.codes(name)
            hit = [any(value == pattern or fnmatchcase(value, str(pattern)) for pattern in options) for value in values]
            return np.asarray(hit, bool)[codes]
        column = self.table[name]
        options = [-1 if option is None else option for option in options]
        return np.isin(column, np.asarray(options).astype(column.dtype))
