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
        low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
        if len(low) and (low.min() < 0 or high.max() >= len(self.rows) or (low > high).any()):
            found = f"low {low.min()} to {low.max()}, high {high.min()} to {high.max()}"
            raise IndexError(f"gather: {found}; expected 0 <= low <= high < {len(self.rows)} rows")
        index, offsets = np.asarray(index, np.int64), np.asarray(offsets, np.int64)
        size, rows = len(offsets), self.rows if columns is None else self.rows[:, columns]
        self._give_back(len(index) * (self.bytes * size + FAULT))
        if not 0 < size <= len(rows) or (offsets[1:] - offsets[:-1] != 1).any():
            return rows[np.clip(index[:, None] + offsets, low[:, None], high[:, None])]
        # neighbouring rows are one stretch of memory: copy each window at once, then redo those that needed clipping
        first, there = index + offsets[0], len(rows) - size + 1
        stretches = as_strided(rows, (there, size, rows.shape[1]), (rows.strides[0], *rows.strides), writeable=False)
        out = stretches[np.minimum(np.maximum(first, 0), there - 1)]
        clipped = np.flatnonzero((first < low) | (first + size - 1 > high))
        if len(clipped):
            inside = index[clipped, None] + offsets
            out[clipped] = rows[np.minimum(np.maximum(inside, low[clipped, None]), high[clipped, None])]
        return out

    def take(self, places: np.ndarray) -> np.ndarray:
        """The rows `places` [...]: [..., W]. IndexError where there is none."""
        self._give_back(places.size * (self.bytes + FAULT))
        return self.rows.take(places, 0)

    def read(self, first: int, stop: int, columns: slice) -> np.ndarray:
        """Some columns of the rows from `first` to before `stop`, copied."""
        self._give_back((stop - first) * self.bytes + FAULT)
        return self.rows[first:stop, columns].copy()

    def _give_back(self, size: int) -> None:
        """Nothing to give back: they are here."""


def _stream(episode: Episode, field: str) -> np.ndarray:
    """A field of an episode, [T or T+1, D]."""
    group, _, key = field.partition(".")
    value = getattr(episode, group)
    value = value[key] if key else value
    return value.reshape(len(value), -1)
