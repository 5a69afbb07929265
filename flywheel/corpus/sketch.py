"""Quantiles that merge exactly: counts in buckets of equal relative width (DDSketch: Masson, Rim, Lee 2019, arXiv
1908.10693).

A number x > 0 falls into bucket k = ceil(log_g x) with g = (1 + a) / (1 - a), and 2 g^k / (g + 1) is within a |x| of
all numbers there; negative numbers have buckets of their own, what is nearer to 0 than 1e-12 is 0. Merging adds counts,
so the sketch of a union is the same however it was cut: a quantile is wrong by at most a = 1 % of its own value,
whatever was merged. Mean, deviation and extremes are in corpus.statistics, exactly."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flywheel import store
from flywheel.corpus.segment import CorpusError

if TYPE_CHECKING:
    from flywheel.corpus.version import Version

ERROR = 0.01  # a
GROWTH = (1 + ERROR) / (1 - ERROR)
ZERO = 1e-12
LOWEST = int(np.ceil(np.log(ZERO) / np.log(GROWTH))) - 1  # the bucket before the first
SPAN = 2**17  # more than all buckets of a column: float64 ends in bucket 35,489


@dataclass(frozen=True)
class Sketch:
    """Counts of D columns: `keys` [K] int64, ascending (column and bucket, in the order of the numbers), `counts`
    [K]."""

    width: int
    keys: np.ndarray
    counts: np.ndarray

    def quantiles(self, q: Sequence[float]) -> np.ndarray:
        """[Q, D]: of each column's n numbers in ascending order the one at place floor(q (n - 1)), to 1 % of itself.

        That is numpy's method="lower". ValueError for no number.
        """
        if not len(self.keys) and self.width:
            raise ValueError("quantiles of no number: select at least one episode")
        ends = np.cumsum(self.counts)
        first = np.searchsorted(self.keys, np.arange(self.width + 1) * SPAN)
        below = np.concatenate([[0], ends])[first]  # numbers in the columns before each
        place = np.floor(np.asarray(q, np.float64)[:, None] * (np.diff(below) - 1)).astype(np.int64)
        bucket = self.keys[np.searchsorted(ends, below[:-1] + place, side="right")] % SPAN - SPAN // 2
        size = 2 * GROWTH ** (np.abs(bucket) + float(LOWEST)) / (GROWTH + 1)
        return np.where(bucket == 0, 0.0, np.sign(bucket) * size)


def sketch(rows: np.ndarray) -> Sketch:
    """The sketch of rows [N, ...], finite numbers, a column for each number of a row."""
    columns = rows.reshape(len(rows), -1).astype(np.float64)
    size = np.abs(columns)
    with np.errstate(divide="ignore"):
        bucket = np.ceil(np.log(np.maximum(size, ZERO)) / np.log(GROWTH)).astype(np.int64) - LOWEST
    bucket = np.where(size < ZERO, 0, np.sign(columns).astype(np.int64) * bucket)
    keys = bucket + SPAN // 2 + np.arange(columns.shape[1]) * SPAN
    return Sketch(columns.shape[1], *np.unique(keys, return_counts=True))


def merge(parts: Sequence[Sketch]) -> Sketch:
    """The sketch of all that the parts (at least one) were made of, equal to the last bit in any order and grouping."""
    widths = {part.width for part in parts}
    if len(widths) != 1:
        raise ValueError(f"merge: {len(parts)} sketches of {sorted(widths)} columns; expected one width")
    keys, where = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, where, np.concatenate([part.counts for part in parts]))
    return Sketch(widths.pop(), keys, counts)


def of(version: Version, field: str, folder: str | Path) -> Sketch:
    """The sketch of a stream ("obs.state", "action") over all rows of a version.

    That of each segment's episodes is kept below `folder`, so that only new segments are read; it may be deleted.
    CorpusError for no episode, and where an episode lacks the stream or has it in another width.
    """
    state, reader = version.corpus.history.state, version.corpus.reader
    parts, local = state.parts(version.rows), state.take("local", version.rows)
    found, widths = [], {}
    for part in np.unique(parts).tolist():
        segment, which = reader.segment(part), np.sort(local[parts == part])
        width = segment.width(field)
        widths[width] = widths.get(width, 0) + len(which)
        if width is None or len(widths) > 1:
            continue
        text = "\n".join([field, *(segment.columns["hash"][index] for index in which.tolist())])
        path = Path(folder) / "sketch-1" / f"{hashlib.sha256(text.encode()).hexdigest()}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                found.append(Sketch(width, file["keys"], file["counts"]))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            made, data = _of_segment(segment, which, field), io.BytesIO()
            np.savez_compressed(data, keys=made.keys, counts=made.counts)
            with suppress(OSError):  # a store that only is to be read: it is made again next time
                store.make_dirs(path.parent)
                store.write_atomic(path, data.getvalue())
            found.append(made)
    if not widths:
        raise CorpusError(f"quantiles of {field}: version {version.ref} has no episode; select at least one")
    if len(widths) > 1 or None in widths:
        words = ", ".join(f"{n} have {'none' if w is None else f'{w} numbers a row'}" for w, n in widths.items())
        raise CorpusError(f"quantiles of {field}: of {len(version)} episodes {words}; name a view with one robot's")
    return merge(found)


def _of_segment(segment, which: np.ndarray, field: str) -> Sketch:
    whole, extra = segment.arrays([field]).get(field), segment.schema["rows"][field][2]
    if whole is None:  # rows without numbers
        return sketch(np.zeros((1, 0)))
    rows = [
        whole[first : first + steps + extra]
        for first, steps in zip(segment.first[which], segment.lengths[which], strict=True)
    ]
    return sketch(np.concatenate(rows))
