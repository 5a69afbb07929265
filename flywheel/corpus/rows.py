"""Rows of episodes, gathered by window: in memory here, of a corpus in corpus.windows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import as_strided

from flywheel.episode import Episode

RESIDENT = 4 * 2**30  # bytes of rows that may stay in a process's memory
FAULT = 2**21  # bytes that the kernel maps around a byte that is touched, at most (a large folio)


class Rows:
    """Episodes side by side: what training gathers from. These are in memory; see Windows for those of a corpus.

    rows [R, W], columns {field: slice of the W}, start and length [E] (T+1 rows each), terminated [E] bool
    """

    resident = RESIDENT

    def __init__(self, episodes: Sequence[Episode], fields: tuple[str, ...]):
        self.fields, self.row, self.dtype = fields, None, np.dtype(np.float32)
        self.length = np.asarray([len(episode) for episode in episodes], np.int64)
        self.start = np.cumsum(self.length + 1) - self.length - 1
        self.terminated = np.asarray([episode.terminated for episode in episodes], bool)
        streams = [[_stream(episode, field) for field in fields] for episode in episodes]
        ends = np.cumsum([stream.shape[1] for stream in streams[0]])
        self.columns = {
            name: slice(e - s.shape[1], e) for name, e, s in zip(fields, ends.tolist(), streams[0], strict=True)
        }
        self.rows = np.zeros((int((self.length + 1).sum()), ends[-1]), self.dtype)
        for first, several in zip(self.start.tolist(), streams, strict=True):
            for stream, columns in zip(several, self.columns.values(), strict=True):
                self.rows[first : first + len(stream), columns] = stream
        self.width, self.bytes = self.rows.shape[1], self.rows.strides[0]

    def __len__(self) -> int:
        """E, the number of episodes."""
        return len(self.start)

    def gather(
        self,
        index: np.ndarray,
        offsets: Sequence[int] | np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        columns: slice | None = None,
    ) -> np.ndarray:
        """Rows `index + offset`, clipped to [low, high] (both included): [B, L, W], contiguous.

        index [B] row numbers, offsets [L], low and high [B]: the bounds of each row's episode, so that a window repeats
        the first or last row instead of reaching into a neighbour. `columns` (such as self.columns["action"]) gives
        these of the W columns only."""
        if columns is None and (apart := self._apart()):
            return np.concatenate([self.gather(index, offsets, low, high, part) for part in apart], axis=2)
        return self.later(index, offsets, low, high, columns)[:]

    def later(self, index, offsets, low, high, columns: slice | None = None) -> Later:
        """What `gather` gives, some of it at a time, when it is asked for: later(...)[:64]."""
        return Later(self, index, offsets, low, high, columns)

    def take(self, places: np.ndarray) -> np.ndarray:
        """The rows `places` [...]: [..., W]. IndexError where there is none."""
        self._give_back(places.size * (self.bytes + FAULT))
        return self._of(None).take(places, 0)

    def read(self, first: int, stop: int, columns: slice) -> np.ndarray:
        """Some columns of the rows from `first` to before `stop`, copied."""
        self._give_back((stop - first) * self.bytes + FAULT)
        return self._of(columns)[first:stop].copy()

    @property
    def count(self) -> int:
        """R, the number of rows."""
        return len(self.rows)

    def _of(self, columns: slice | None) -> np.ndarray:
        """These columns of all rows, [R, D]."""
        return self.rows if columns is None else self.rows[:, columns]

    def _apart(self) -> list[slice]:
        """The columns of each field where these do not lie side by side: nowhere here."""
        return []

    def _give_back(self, size: int) -> None:
        """Nothing to give back: they are here."""


class Later:
    """Windows whose places are worked out for many, and which are gathered some at a time: what is copied then fits
    into a processor's cache, and into memory that was used before. later[part] is [n, L, D]."""

    def __init__(self, held: Rows, index, offsets, low, high, columns: slice | None):
        self.held, self.rows = held, held._of(columns)
        self.low, self.high = np.asarray(low, np.int64), np.asarray(high, np.int64)
        if len(self.low) and (self.low.min() < 0 or self.high.max() >= held.count or (self.low > self.high).any()):
            found = f"low {self.low.min()} to {self.low.max()}, high {self.high.min()} to {self.high.max()}"
            raise IndexError(f"gather: {found}; expected 0 <= low <= high < {held.count} rows")
        self.index, self.offsets = np.asarray(index, np.int64), np.asarray(offsets, np.int64)
        size, width, self.pieces = len(self.offsets), self.rows.shape[1], None
        self.last: tuple[slice, np.ndarray] | None = None  # what a Part read
        self.shape = len(self.index), size, width
        self.each = self.rows.strides[0] * size + FAULT
        if not 0 < size <= len(self.rows) or (self.offsets[1:] - self.offsets[:-1] != 1).any():
            return
        # neighbouring rows are one stretch of memory: copy each window at once, then redo those that needed clipping
        first, there = self.index + self.offsets[0], len(self.rows) - size + 1
        shape, strides = (there, size, width), (self.rows.strides[0], *self.rows.strides)
        if self.rows.flags.c_contiguous:  # numpy copies one long piece faster than several short ones
            shape, strides = (there, size * width), self.rows.strides
        self.pieces = as_strided(self.rows, shape, strides, writeable=False)
        self.first = np.minimum(np.maximum(first, 0), there - 1)
        self.clipped = (first < self.low) | (first + size - 1 > self.high)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice | np.ndarray) -> np.ndarray:
        index = self.index[part]
        self.held._give_back(len(index) * self.each)
        if self.pieces is None:
            return self._clipped(index, self.low[part], self.high[part])
        out = self.pieces[self.first[part]].reshape(len(index), *self.shape[1:])
        (redo,) = self.clipped[part].nonzero()
        if len(redo):
            out[redo] = self._clipped(index[redo], self.low[part][redo], self.high[part][redo])
        return out

    def parted(self, at: int) -> tuple[Part, Part]:
        """The windows' rows before `at` and from there on: [B, at, D] and [B, L - at, D], gathered as one."""
        return Part(self, slice(0, at)), Part(self, slice(at, self.shape[1]))

    def _clipped(self, index: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        inside = index[:, None] + self.offsets
        return self.rows.take(np.minimum(np.maximum(inside, low[:, None]), high[:, None]), 0)


class Part:
    """Some rows of each window of a Later, for who asks for the same windows in turn: they are gathered once."""

    def __init__(self, whole: Later, rows: slice):
        self.whole, self.rows = whole, rows

    def __getitem__(self, part: slice) -> np.ndarray:
        if self.whole.last is None or self.whole.last[0] != part:
            self.whole.last = part, self.whole[part]
        return self.whole.last[1][:, self.rows]


def _stream(episode: Episode, field: str) -> np.ndarray:
    """A field of an episode, [T or T+1, D]."""
    group, _, key = field.partition(".")
    value = getattr(episode, group)
    value = value[key] if key else value
    return value.reshape(len(value), -1)
