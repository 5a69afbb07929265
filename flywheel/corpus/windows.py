"""The rows of a corpus for training: decoded once into memory-mapped files, extended by new segments only.

    rows  [R, D] float32 of each field, a file each:   obs.state, action, reward
          every episode has T+1 rows; the last one holds the final observation, its action and reward are zero
          of a camera, alone: [R, H * W * 3] uint8, decoded
    A window of a field is one piece of its file: side by side in one, it would be as many as it has steps.

    <cache>/windows-<key>/     key = corpus id, fields, their widths, dtype
        index.json             how far the files are whole, with checksums; published by rename
        rows-<ulid>-<n>.f32    of field n, only ever grows (.u8 of a camera); bytes beyond the index: a killed writer's
        rows-<ulid>.i64        an episode: its row in the corpus, where its rows begin here, how many, their crc32

Since the log only appends, one file serves every version: a version is a list of (first row, length). Segments are
added when a version first needs them, under a lock. A cache that fails its check is built again beside the old file,
which stays mapped where it is in use. In memory an episode takes 24 bytes; the pages of a file larger than `resident`
are given back as they pile up, so that a corpus may be larger than RAM."""

from __future__ import annotations

import hashlib
import json
import mmap
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flywheel import store
from flywheel.corpus import align as alignment
from flywheel.corpus.align import width
from flywheel.corpus.decode import Decoder, fill, keep, sent, whose
from flywheel.corpus.rows import RESIDENT, Rows
from flywheel.corpus.segment import CorpusError, ulid

if TYPE_CHECKING:
    from flywheel.corpus.version import Version

Progress = Callable[[str, int], Any] | None  # flywheel.log.progress or the like
CHECK_BYTES = 64 * 2**20  # rows whose checksum is compared when a cache is opened: of evenly spread episodes
TASK_BYTES, WAVE = 32 * 2**20, 64  # of rows that others decode as one task; tasks between two words of how far it is
SENT = 8  # the same where rows are sent: they are in memory meanwhile
NOTHING = {"file": None, "rows": 0, "episodes": 0, "crc": 0}  # the index of no file


class Windows(Rows):
    """The rows of one version (or selection), over a file that all versions share.

    rows      [R, W] float32, a read-only memory map of one field (uint8 of a camera); of several a copy, side by side
    row       shape of a camera's row (H, W, 3), else None
    columns   {field: slice of the W columns}
    start     [E] int64, first row of each episode of `version`, in its order
    length    [E] int64, its number of steps T (it has T+1 rows: start .. start + T)
    version   the Version, and with it the table of its episodes
    decoded   how many segments this opening had to decode
    blind     of how many tasks the workers did not see the corpus, so that they were done here
    layout    where each robot's numbers are, with `align` (corpus.align); without it all have equal widths
    map       map(function, tasks) of an executor, whose workers decode what is missing and write it where it belongs;
              `apart`: send it here, if they see the corpus (they need not see the cache)
    """

    def __init__(
        self,
        version: Version,
        fields: tuple[str, ...],
        cache: Path,
        resident: int = RESIDENT,
        align: Any = None,
        progress: Progress = None,
        base: Windows | None = None,
        map: Callable | None = None,
        apart: bool = False,
    ):
        if not len(version):
            raise CorpusError(f"windows: no episode is selected from version {version.number}; look at the selection")
        self.version, self.fields, self.cache, self.resident = version, fields, cache, resident
        self.align, self.progress, self.map, self.apart, self.blind = align, progress, map, apart, 0
        state = version.corpus.history.state
        like = version.corpus.reader.segment(int(state.parts(version.rows[:1])[0]))
        self.layout = alignment.layout(version, fields, align) if align else None
        widths = [self.layout.widths[field] if self.layout else width(like, field) for field in fields]
        cameras = like.cameras().keys() & set(fields)
        if cameras and len(fields) > 1:
            raise CorpusError(f"windows: {cameras.pop()} is a camera and has windows of its own: ask for it alone")
        self.row = like.row(fields[0]) if cameras else None
        self.dtype = np.dtype(np.uint8 if cameras else np.float32)
        ends = np.cumsum(widths)
        self.columns = {name: slice(int(e - w), int(e)) for name, e, w in zip(fields, ends, widths, strict=True)}
        self.width = int(ends[-1])
        self.bytes = self.width * self.dtype.itemsize  # of a row
        self.decoder = Decoder(fields, self.columns, self.width, self.row, self.dtype, self.layout, whose(like))
        key = json.dumps([version.corpus.id, fields, widths, self.dtype.name, *([align] if align else [])])
        self.folder = cache / f"windows-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self._index, self.start, self.length, self.decoded = self._open(base._index if base else NOTHING)
        self._maps, self._parts = [], {}
        for number, columns in enumerate(self.columns.values()):
            self._parts[columns.start] = self._opened(number, columns.stop - columns.start)
        self._touched, self._others = 0, _mapped()  # bytes of the rows that are in memory, at most; of other files

    def _opened(self, number: int, width: int) -> np.ndarray:
        """A field's rows [R, width], mapped."""
        if not width:
            return np.zeros((self.count, 0), self.dtype)
        with open(self._file(self._index, number), "rb") as file:
            size = self.count * width * self.dtype.itemsize
            self._maps.append(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        return np.frombuffer(self._maps[-1], self.dtype).reshape(-1, width)

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([*self._parts.values()], 1) if len(self.columns) > 1 else self._of(None)

    @property
    def count(self) -> int:
        """R, the number of rows."""
        return self._index["rows"]

    def _of(self, columns: slice | None) -> np.ndarray:
        """A field's rows, [R, D]."""
        return self._parts[0 if columns is None else columns.start]

    def _apart(self) -> list[slice]:
        """The columns of each field, where there are several."""
        return [*self.columns.values()] if len(self.columns) > 1 else []

    @property
    def table(self):
        return self.version.table

    @property
    def terminated(self) -> np.ndarray:
        """[E] bool."""
        return self.table["terminated"]

    def _give_back(self, size: int) -> None:
        """Before `size` more bytes may come in: the pages so far leave this process (not the page cache) near the
        limit."""
        self._touched += size
        if self._touched > self.resident and self.count * self.bytes > self.resident:
            self._touched = _mapped() - self._others + size  # as it is, not as it may be
            if self._touched > self.resident // 2:
                for one in self._maps:
                    one.madvise(mmap.MADV_DONTNEED)
                self._touched = size

    def extend(self, version: Version) -> Windows:
        """The windows of another version over the same file; only segments that it lacks are decoded, and what this
        opening has checked is not checked again: the episodes that a round has added cost what they are."""
        how = self.fields, self.cache, self.resident, self.align, self.progress
        return Windows(version, *how, self, self.map, self.apart)

    def same(self, other: Windows) -> bool:
        """Are both over one file, so that a row number means the same in both?"""
        return (self.folder, self._index["file"]) == (other.folder, other._index["file"])

    def _open(self, seen: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray, np.ndarray, int]:
        """The index, start and length, and how many segments had to be decoded for them; `seen` is an index that was
        checked."""
        state, rows = self.version.corpus.history.state, self.version.rows
        index = self._read(seen)
        start, length = self._find(index, seen)
        decoded = 0
        if (length < 0).any():
            with store.Lock(self.folder, f"extending the window cache of {self.version.corpus.path}", wait=True):
                index = self._read(seen) or {**NOTHING, "file": f"rows-{ulid()}"}
                start, length = self._find(index, seen)
                missing = rows[length < 0]
                decoded = len(np.unique(state.parts(missing)))
                if decoded:
                    self._extend(index, missing)
                    start, length = self._find(index, seen)
        return index, start, length, decoded

    def _find(self, index: dict[str, Any] | None, seen: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Start and length of each episode of the version; length -1 where the cache lacks it. First among what is
        not in `seen`."""
        rows = self.version.rows
        begin = seen["episodes"] if index and index["file"] == seen["file"] else 0
        if not index or index["episodes"] == begin == 0:
            return np.full(len(rows), -1), np.full(len(rows), -1)
        kept = self._episodes(index)[begin:]
        at, low = np.full(1, -1, np.int32), 0
        if len(kept):
            low = kept[:, 0].min()
            at = np.full(kept[:, 0].max() - low + 2, -1, np.int32)
            at[kept[:, 0] - low] = np.arange(len(kept))
        inside = rows - low
        at = at[np.where((inside >= 0) & (inside < len(at)), inside, -1)]
        if begin and (at < 0).any():
            start, length = self._find(index, NOTHING)
            return start, length
        if not len(kept):
            return np.full(len(rows), -1), np.full(len(rows), -1)
        return kept[at, 1], np.where(at < 0, -1, kept[at, 2] - 1)

    def _extend(self, index: dict[str, Any], missing: np.ndarray) -> None:
        """Decode the segments of rows, here one at a time: memory is bounded by the largest. A camera's only as far as
        it is wanted."""
        log = self.version.corpus.history
        wanted = {part: log.state.rows(part) for part in np.unique(log.state.parts(missing)).tolist()}
        if self.row:
            wanted = {part: mine[np.isin(mine, missing)] for part, mine in wanted.items()}
        rows = np.concatenate(list(wanted.values()))
        counts = self.version.corpus.reader.column("length", rows) + 1
        begin = index["rows"] + np.cumsum(counts) - counts
        for number, columns in self._stored():
            _cut(self._file(index, number), index["rows"] * (columns.stop - columns.start) * self.dtype.itemsize)
        with (
            open(_cut(self._file(index), index["episodes"] * 32), "ab") as numbers,
            self.progress("window cache", len(rows)) if self.progress else nullcontext(lambda: None) as tick,
        ):
            at = 0
            for checks in self._filled(index, wanted, counts, begin):
                part = slice(at, at + len(checks))
                record = np.stack([rows[part], begin[part], counts[part], np.asarray(checks, np.int64)], 1)
                numbers.write(record)
                index["crc"] = zlib.crc32(record, index["crc"])
                at = part.stop
                for _ in checks:
                    tick()
        index |= {"rows": index["rows"] + int(counts.sum()), "episodes": index["episodes"] + len(rows)}
        index |= {"version": log.head, "tip": log.state.tip}
        told = store.to_json({**index, "check": _check(index)})
        store.write_atomic(self.folder / "index.json", told, durable=False)
        for path in self.folder.glob("rows-*"):
            if not path.name.startswith(index["file"]):
                path.unlink(missing_ok=True)

    def _filled(self, index, wanted: dict[int, np.ndarray], counts: np.ndarray, begin: np.ndarray) -> Iterator[list]:
        """The checksums of all rows, in order, as they are there: by `map`, a few segments a task, or here."""
        corpus = self.version.corpus
        files = [(str(self._file(index, number)), columns) for number, columns in self._stored()]
        tasks, at, size = [], 0, 0
        for part, mine in wanted.items():
            one = part, corpus.history.state.take("local", mine).tolist()
            rows = counts[at : at + len(mine)].tolist()
            if self.map and tasks and size < TASK_BYTES:
                tasks[-1][2].append(one)
                tasks[-1][5].extend(rows)
            else:
                where = str(corpus.path) if self.map else corpus
                tasks.append((where, self.decoder, [one], files, int(begin[at]), rows))
                size = 0
            at, size = at + len(mine), size + sum(rows) * self.bytes
        size = SENT if self.apart else WAVE
        for first in range(0, len(tasks), size):
            wave = tasks[first : first + size]
            if not self.map or len(tasks) < 2:
                yield from (fill(*task) for task in wave)
            elif self.apart:
                yield from self._received(wave)
            else:
                yield from self.map(fill, wave)

    def _received(self, wave: list[tuple]) -> Iterator[list]:
        """What others decoded, written to its place here; where they do not see the corpus it is decoded here."""
        where = wave[0][0], self.version.corpus.id
        found = self.map(sent, [(where, decoder, parts, counts) for _, decoder, parts, _, _, counts in wave])
        self.blind += sum(blocks is None for blocks in found)
        for task, blocks in zip(wave, found, strict=True):
            _, decoder, _, files, begin, _ = task
            yield fill(*task) if blocks is None else keep(blocks, decoder, files, begin)

    def _stored(self) -> list[tuple[int, slice]]:
        """The fields that have a file: (number, columns)."""
        return [(n, columns) for n, columns in enumerate(self.columns.values()) if columns.stop > columns.start]

    def _file(self, index: dict[str, Any], field: int | None = None) -> Path:
        """The file of a field's rows, or the one of the episodes."""
        end = ".i64" if field is None else f"-{field}.{'u8' if self.row else 'f32'}"
        return self.folder / f"{index['file']}{end}"

    def _episodes(self, index: dict[str, Any]) -> np.ndarray:
        return np.memmap(self._file(index), np.int64, "r", shape=(index["episodes"], 4))

    def _read(self, seen: dict[str, Any]) -> dict[str, Any] | None:
        """The published index, or None where there is none or the cache, beyond what was `seen`, fails its check."""
        try:
            index = store.read_json(self.folder / "index.json")
            if index.pop("check") != _check(index):
                return None
            widths = [columns.stop - columns.start for columns in self.columns.values()]
            parts = [
                np.memmap(self._file(index, n), self.dtype, "r", shape=(index["rows"], w))
                for n, w in enumerate(widths)
                if w
            ]
            seen = seen if index["file"] == seen["file"] and index["episodes"] >= seen["episodes"] else NOTHING
            episodes = self._episodes(index)[seen["episodes"] :]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if (
            zlib.crc32(episodes, seen["crc"]) != index["crc"]
            or self.version.corpus.history.hash(index["version"]) != index["tip"]
        ):
            return None
        size = (index["rows"] - seen["rows"]) * self.bytes
        for _, first, count, crc in episodes[:: max(1, size // CHECK_BYTES)].tolist():
            found = 0
            for part in parts:
                found = zlib.crc32(part[first : first + count], found)
            if found != crc:
                return None
        return index


class Steps:
    """A field of all steps of windows, one episode after the other: [R, D], of which only the slice that is asked
    for is read, and that a quarter of what may be in memory at once."""

    def __init__(self, windows: Windows, field: str):
        self.windows, self.columns, self.ends = windows, windows.columns[field], np.cumsum(windows.length)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, part: slice) -> np.ndarray:
        first, last, _ = part.indices(len(self))
        size = max(1, self.windows.resident // self.windows.bytes // 4)
        return np.concatenate(
            [self._read(low, min(low + size, last)) for low in range(first, max(last, first + 1), size)]
        )

    def _read(self, first: int, last: int) -> np.ndarray:
        number = np.arange(first, last)
        episode = np.searchsorted(self.ends, number, side="right")
        row = number - self.ends[episode] + (self.windows.start + self.windows.length)[episode]
        return self.windows.gather(row, [0], row, row, columns=self.columns)[:, 0]


def _cut(path: Path, size: int) -> Path:
    """A file cut at `size`, new where that is 0."""
    with open(path, "r+b" if size else "wb") as file:
        file.truncate(size)
    return path


def _mapped() -> int:
    """Bytes of files that are in this process's memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[2]) * mmap.PAGESIZE


def _check(index: dict[str, Any]) -> str:
    return hashlib.sha256(store.to_json(index)).hexdigest()
