"""The rows of a corpus for training: decoded once into one memory-mapped file, extended by new segments only.

    rows  [R, W] float32, the fields side by side:   obs.state | action | reward
          every episode has T+1 rows; the last one holds the final observation, its action and reward are zero

    <cache>/windows-<key>/     key = corpus id, fields, their widths, dtype
        index.json             which segment starts at which row, with checksums; published by rename
        rows-<ulid>.f32        only ever grows; bytes beyond the index are a killed writer's and are overwritten

Since the log only appends, one file serves every version: a version is a list of (first row, length). Segments are
added when a version first needs them, under a lock. A cache that fails its check is built again beside the old file,
which stays mapped where it is in use.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel import store
from flywheel.corpus.segment import CorpusError, Segment, ulid

if TYPE_CHECKING:
    from flywheel.corpus.version import Version

CHECK_BYTES = (
    64 * 2**20
)  # rows whose checksum is compared when a cache is opened; of a larger one, evenly spread segments


class Windows:
    """The rows of one version (or selection), over a file that all versions share.

    rows      np.memmap [R, W] float32, read-only
    columns   {field: slice of the W columns}
    start     [E] int64, first row of each episode of `version`, in its order
    length    [E] int64, its number of steps T (it has T+1 rows: start .. start + T)
    version   the Version, and with it the table of its episodes
    decoded   how many segments this opening had to decode
    """

    def __init__(self, version: Version, fields: tuple[str, ...], cache: Path):
        self.version, self.fields, self.cache = version, fields, cache
        corpus, state = version.corpus, version.corpus.history.state
        parts = state.parts(version.rows)
        held = {int(part): corpus.reader.segment(part) for part in dict.fromkeys(parts.tolist())}
        widths = _widths([*held.values()], fields, version)
        ends = np.cumsum(widths)
        self.columns = {name: slice(int(e - w), int(e)) for name, e, w in zip(fields, ends, widths, strict=True)}
        key = json.dumps([corpus.id, fields, widths, "float32"])
        self.folder = cache / f"windows-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        index, self.decoded = self._open([*held.values()], int(ends[-1]))
        shape = (index["rows"], int(ends[-1]))
        self.rows = np.memmap(self.folder / index["file"], np.float32, "r", shape=shape)
        self._flat = np.asarray(self.rows)  # a plain view: np.take is slower on the subclass
        local = state.take("local", version.rows)
        first = [index["segments"][held[part].name][0] for part in parts.tolist()]
        inner = [held[part].first[at] for part, at in zip(parts.tolist(), local.tolist(), strict=True)]
        self.start = np.asarray(first, np.int64) + np.asarray(inner, np.int64)
        self.length = version.table["length"]

    def __len__(self) -> int:
        """E, the number of episodes."""
        return len(self.start)

    @property
    def table(self) -> dict[str, np.ndarray]:
        return self.version.table

    def gather(
        self,
        index: np.ndarray,
        offsets: Sequence[int] | np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows `index + offset`, clipped to [low, high] (both included): [B, L, W] float32, contiguous.

        index [B] row numbers, offsets [L], low and high [B]: the bounds of each row's episode, so that a window repeats
        the first or last row instead of reaching into a neighbour. `out` [B, L, W] is filled and returned if given.
        """
        low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
        if len(low) and (low.min() < 0 or high.max() >= len(self._flat) or (low > high).any()):
            found = f"low {low.min()} to {low.max()}, high {high.min()} to {high.max()}"
            raise IndexError(f"gather: {found}; expected 0 <= low <= high < {len(self._flat)} rows")
        index, offsets = np.asarray(index, np.int64), np.asarray(offsets, np.int64)
        size, width = len(offsets), self._flat.shape[1]
        if out is not None or not 0 < size <= len(self._flat) or (np.diff(offsets) != 1).any():
            return self._take(index, offsets, low, high, out)
        # neighbouring rows are one stretch of memory: copy each window at once, then redo those that needed clipping
        first = index + offsets[0]
        stretches = np.ndarray(
            (len(self._flat) - size + 1, size, width), np.float32, self._flat, strides=(4 * width, 4 * width, 4)
        )
        out = stretches[np.clip(first, 0, len(stretches) - 1)]
        clipped = np.flatnonzero((first < low) | (first + size - 1 > high))
        if len(clipped):
            out[clipped] = self._take(index[clipped], offsets, low[clipped], high[clipped])
        return out

    def _take(
        self, index: np.ndarray, offsets: np.ndarray, low: np.ndarray, high: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        rows = index[:, None] + offsets
        np.maximum(rows, low[:, None], out=rows)
        np.minimum(rows, high[:, None], out=rows)
        return np.take(self._flat, rows, axis=0, out=out, mode="clip")  # mode="raise" copies through a buffer

    def extend(self, version: Version) -> Windows:
        """The windows of another version over the same file; only segments that it lacks are decoded."""
        return Windows(version, self.fields, self.cache)

    def _open(self, segments: list[Segment], width: int) -> tuple[dict[str, Any], int]:
        """The index of a cache that has all `segments`, and how many of them had to be decoded."""
        index = self._read(width)
        if index and all(segment.name in index["segments"] for segment in segments):
            return index, 0
        with store.Lock(self.folder, f"extending the window cache of {self.version.corpus.path}", wait=True):
            index = self._read(width) or self._fresh()
            missing = [segment for segment in segments if segment.name not in index["segments"]]
            if not missing:
                return index, 0
            with open(self.folder / index["file"], "r+b" if index["rows"] else "wb") as file:
                file.truncate(index["rows"] * width * 4)
                file.seek(0, os.SEEK_END)
                for segment in missing:  # one at a time: memory is bounded by the largest segment
                    block = self._decode(segment, width)
                    file.write(block)
                    index["segments"][segment.name] = [index["rows"], len(block), zlib.crc32(block)]
                    index["rows"] += len(block)
                file.flush()
                os.fsync(file.fileno())
            index.pop("check", None)
            store.write_json(self.folder / "index.json", {**index, "check": _check(index)})
            for path in self.folder.glob("rows-*.f32"):
                if path.name != index["file"]:
                    path.unlink(missing_ok=True)
        return index, len(missing)

    def _decode(self, segment: Segment, width: int) -> np.ndarray:
        """[rows of the segment, W] float32."""
        arrays = segment.arrays(list(self.fields))
        block = np.zeros((int(segment.first[-1]), width), np.float32)
        for name, columns in self.columns.items():
            if name in arrays:  # a stream without columns is not stored
                block[:, columns] = arrays[name].reshape(len(block), -1)
        return block

    def _fresh(self) -> dict[str, Any]:
        return {"file": f"rows-{ulid()}.f32", "rows": 0, "segments": {}}

    def _read(self, width: int) -> dict[str, Any] | None:
        """The published index, or None where there is none or the cache fails its check."""
        try:
            index = store.read_json(self.folder / "index.json")
            if index.pop("check") != _check(index):
                return None
            rows = np.memmap(self.folder / index["file"], np.float32, "r", shape=(index["rows"], width))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        stride = max(1, rows.nbytes // CHECK_BYTES)
        for first, count, crc in list(index["segments"].values())[::stride]:
            if zlib.crc32(rows[first : first + count]) != crc:
                return None
        return index


def _check(index: dict[str, Any]) -> str:
    return hashlib.sha256(store.to_json(index)).hexdigest()


def _widths(segments: list[Segment], fields: tuple[str, ...], version: Version) -> list[int]:
    """Width of each field, which must be the same in all segments. CorpusError names the segment's task otherwise."""
    if not segments:
        raise CorpusError(f"windows: no episode is selected from version {version.number}; look at the selection")
    first = segments[0]
    for segment in segments:
        for field in fields:
            width, wanted = segment.width(field), first.width(field)
            task = segment.columns["task"][0]
            if width is None:
                there = ", ".join(segment.schema["rows"])
                raise CorpusError(f"windows: no field {field!r} in the episodes of task {task}. There are: {there}")
            if width != wanted:
                raise CorpusError(
                    f"windows: {field} is {wanted} wide in task {first.columns['task'][0]} (episode "
                    f"{first.columns['hash'][0][:12]}) and {width} in task {task} (episode "
                    f"{segment.columns['hash'][0][:12]}); select one of them: version.select(task=...)"
                )
    return [first.width(field) for field in fields]
