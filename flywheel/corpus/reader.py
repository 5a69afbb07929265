"""Episodes and their columns by row number: opened segments, the few that are decoded, and the log that names them."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import numpy as np

from flywheel.corpus.block import NUMBERS, TEXT
from flywheel.corpus.files import Files
from flywheel.corpus.log import Log
from flywheel.corpus.segment import CorpusError, Segment
from flywheel.episode import Episode

DECODED_BYTES = 128 * 2**20  # decoded segments kept for the next `episode`
OPENED = 4096  # segments whose columns are kept
FROM_SEGMENTS = ("meta", "cameras")  # columns that no checkpoint has
WIDER = {"terminated": bool, "length": np.int64}


class Reader:
    """`history` is the log; rows and parts are its numbers (see corpus.state)."""

    def __init__(self, files: Files, corpus_id: str):
        self.files = files
        own = weakref.proxy(self)  # no cycle, see Log._open
        self.history = Log(files, corpus_id, lambda name, sha256: own._columns(name, sha256))
        self._segments: OrderedDict[str, Segment] = OrderedDict()
        self._decoded: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()
        self._statistics: dict[str, dict[str, np.ndarray]] = {}

    def segment(self, part: int) -> Segment:
        """The segment of a part (a number, see State.parts), opened."""
        return self._opened(*self.history.state.segment(part))

    def _opened(self, name: str, sha256: str) -> Segment:
        if name not in self._segments:
            try:
                self._segments[name] = Segment(self.files, name, sha256)
            except CorpusError:
                expired = self.history.state.expired()
                if name in expired and not self.files.exists(f"segments/{name}/episodes.json"):
                    raise CorpusError(
                        f"{self.files}: segment {name} is gone, no version that was kept by the expire of version "
                        f"{expired[name]} shows it; read a newer version (tags keep theirs for good)"
                    ) from None
                raise
            while len(self._segments) > OPENED:
                self._segments.popitem(last=False)
        self._segments.move_to_end(name)
        return self._segments[name]

    def _columns(self, name: str, sha256: str) -> dict[str, list] | None:
        """A segment's columns for a checkpoint, None where it cannot be read: whoever wants them is told why."""
        try:
            return self._opened(name, sha256).columns
        except (CorpusError, OSError):
            return None

    def column(self, name: str, rows: np.ndarray) -> np.ndarray:
        """A column of the table of some rows (see Version.table); texts as (codes [E], the texts)."""
        state = self.history.state
        if name in ("hash", "added", *FROM_SEGMENTS):
            if name == "hash":
                return np.asarray(state.hashes(rows), "U64")
            if name == "added":
                return state.take("born", rows).astype(np.int64)
            out = np.empty(len(rows), object)
            out[:] = self._from_segments(name, rows)
            return out
        out = np.empty(len(rows), np.int32 if name in TEXT else NUMBERS[name])
        texts: dict[str, int] = {}
        for block, where, index in state.split(rows):
            part = np.searchsorted(block.columns["start"].all(), index, "right") - 1
            known = block.columns["known"].all()[part] == 1
            values = block.columns[name].take(index)
            if name in TEXT:
                codes = [texts.setdefault(text, len(texts)) for text in block.values(name)]
                values = np.asarray(codes, np.int32)[values]
            if not known.all():
                found = self._from_segments(name, index[~known] + block.row0)
                if name in TEXT:
                    found = [texts.setdefault(text, len(texts)) for text in found]
                values[~known] = [-1 if value is None else value for value in found]
            out[where] = values
        return (out, list(texts)) if name in TEXT else out.astype(WIDER.get(name, out.dtype))

    def _from_segments(self, name: str, rows: np.ndarray) -> list:
        """A column from the segments themselves."""
        state = self.history.state
        parts, inverse = np.unique(state.parts(rows), return_inverse=True)
        columns = [self.segment(part).columns[name] for part in parts.tolist()]
        return [columns[which][i] for which, i in zip(inverse, state.take("local", rows), strict=True)]

    def episode(self, row: int) -> Episode:
        """The episode of one row; its segment is decoded whole and kept for the next."""
        segment, index = self._place(row)
        if segment.name not in self._decoded:
            self._decoded[segment.name] = segment.everything()
            size = {key: sum(v.nbytes for v in arrays.values()) for key, arrays in self._decoded.items()}
            while len(self._decoded) > 1 and sum(size.values()) > DECODED_BYTES:
                size.pop(self._decoded.popitem(last=False)[0])
        self._decoded.move_to_end(segment.name)
        return segment.episode(self._decoded[segment.name], index)

    def statistics(self, row: int, field: str) -> np.ndarray:
        """[4, D] statistics of one episode's stream."""
        segment, index = self._place(row)
        name = segment.name
        if name not in self._statistics:
            self._statistics[name] = segment.statistics()
        if field not in self._statistics[name]:
            raise CorpusError(f"no statistics of {field!r}. There are: {', '.join(self._statistics[name])}")
        return self._statistics[name][field][index]

    def _place(self, row: int) -> tuple[Segment, int]:
        """The segment of a row and the episode's index in it."""
        state, one = self.history.state, np.asarray([row])
        return self.segment(int(state.parts(one)[0])), int(state.take("local", one)[0])
