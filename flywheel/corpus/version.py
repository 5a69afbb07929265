"""A version of the corpus, or a selection from one: which episodes, their columns, and their arrays when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel.corpus import statistics
from flywheel.corpus.segment import CorpusError
from flywheel.episode import Episode

if TYPE_CHECKING:
    from flywheel.corpus import Corpus


class Version:
    """Episodes of one version, in append order; `select` gives a subset with the same interface.

    number   the version's number (a subset keeps it); differs between copies of a corpus
    id       sha256 over the sorted episode hashes: equal content, equal id, on every machine and in any order
    rows     [E] int64, positions in the corpus's list of everything ever added (never reused)
    """

    def __init__(self, corpus: Corpus, number: int, rows: np.ndarray):
        self.corpus = corpus
        self.number = number
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Version {self.number} ({self.id[:12]}): {len(self)} episodes>"

    @cached_property
    def hashes(self) -> list[str]:
        """Content hash of each episode (no segment is opened for this)."""
        hashes = self.corpus.history.hashes
        return [hashes[row] for row in self.rows]

    @cached_property
    def id(self) -> str:
        return hashlib.sha256("\n".join(sorted(self.hashes)).encode()).hexdigest()

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Columns over the episodes, [E] each.

        hash task origin  str;  seed int64, -1 where unknown;  success int8, 1 0 or -1 where unknown;  terminated bool;
        length int64 (T);  fps return_ float64;  added int64 (the version that added it);  meta dicts (object)
        """
        return self.corpus.columns(self.rows)

    def select(
        self, where: Callable[[dict[str, np.ndarray]], np.ndarray] | np.ndarray | None = None, **filters: Any
    ) -> Version:
        """The episodes that pass every condition, in the same order.

        where     a boolean mask [E], positions [N], or a function of `table` that returns one of them
        filters   column=value; text columns take a pattern or a list of them (origin="human:*"), `success` and
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
                return Version(self.corpus, self.number, self.rows[positions[keep[positions]]])
        return Version(self.corpus, self.number, self.rows[keep])

    def canonical(self) -> Version:
        """The same episodes sorted by hash: an order that does not depend on when they were added."""
        return Version(self.corpus, self.number, self.rows[np.argsort(np.asarray(self.hashes, "U64"), kind="stable")])

    def read(self, which: str | int) -> Episode:
        """The episode at a position, or with a hash (a unique prefix of at least 6 digits), equal to the last bit."""
        if isinstance(which, str):
            which = self._position(which)
        return self.corpus.read_row(int(self.rows[which]))

    def __iter__(self) -> Iterator[Episode]:
        return (self.corpus.read_row(int(row)) for row in self.rows)

    def statistics(self, field: str) -> dict[str, np.ndarray]:
        """count, mean, M2, std, min, max ([D] each) of a stream over all rows, merged from what the segments keep."""
        parts = np.stack([self.corpus.statistics_row(int(row), field) for row in self.rows]) if len(self) else []
        return statistics.merge(parts, self.table["length"] + field.startswith("obs."))

    def summary(self) -> dict[str, Any]:
        """{"episodes", "steps", "task": {name: n}, "origin": {...}, "success": {"true"|"false"|"unknown": n}}."""
        table = self.table
        counts: dict[str, Any] = {"episodes": len(self), "steps": int(table["length"].sum())}
        for name in ("task", "origin"):
            values, number = np.unique(table[name], return_counts=True)
            counts[name] = {str(value): int(n) for value, n in zip(values, number, strict=True)}
        names = {1: "true", 0: "false", -1: "unknown"}
        counts["success"] = {names[code]: int(n) for code in names if (n := np.count_nonzero(table["success"] == code))}
        return counts

    def _position(self, prefix: str) -> int:
        found = [i for i, name in enumerate(self.hashes) if name.startswith(prefix)] if len(prefix) >= 6 else []
        if len(found) != 1:
            what = f"matches {len(found)} of" if len(prefix) >= 6 else "is shorter than 6 digits; in"
            raise CorpusError(f"episode {prefix!r} {what} the {len(self)} episodes of version {self.number}")
        return found[0]

    def _matches(self, name: str, wanted: Any) -> np.ndarray:
        if name not in self.table:
            raise ValueError(f"select: no column {name!r}. There are: {', '.join(sorted(self.table))}")
        column = self.table[name]
        options = list(wanted) if isinstance(wanted, (list, tuple, set, np.ndarray)) else [wanted]
        if column.dtype.kind == "U":
            values, inverse = np.unique(column, return_inverse=True)
            hit = [any(value == pattern or fnmatchcase(value, str(pattern)) for pattern in options) for value in values]
            return np.asarray(hit, bool)[inverse] if len(values) else np.zeros(0, bool)
        options = [-1 if option is None else option for option in options]
        return np.isin(column, np.asarray(options).astype(column.dtype))
