"""Segments decoded into the rows of a window cache, here or by others: each episode's place in the file is known before
any is decoded, so that whoever decodes it writes it there, in whatever order they come."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flywheel.corpus.align import Layout, width
from flywheel.corpus.segment import CorpusError, Segment
from flywheel.episode import EpisodeError


@dataclass(frozen=True)
class Decoder:
    """What the rows of a cache look like. `first` names the segment that the others have to be like."""

    fields: tuple[str, ...]
    columns: dict[str, slice]
    width: int
    row: tuple[int, ...] | None  # of a camera
    dtype: np.dtype
    layout: Layout | None
    first: str

    def blocks(self, segment: Segment, episodes: Sequence[int]) -> Iterator[np.ndarray]:
        """[T+1, W] of each of some episodes of a segment; an encoded camera's one at a time. CorpusError names two
        that do not go together."""
        for field, columns in self.columns.items() if not self.layout else ():
            found, wanted = width(segment, field), columns.stop - columns.start
            if self.row:
                found, wanted = segment.row(field), self.row
            if found != wanted:
                raise CorpusError(
                    f"windows: {field} is {wanted} wide {self.first} and {found} {whose(segment)}; select one of them: "
                    'version.select(task=...), or align them: align="pad", or a map (corpus.align)'
                )
        encoded = [f"frames.{field}" for field in self.fields if field in segment.media]
        arrays = segment.arrays([*self.fields, *encoded])
        for one in episodes:
            if encoded:
                yield self._frames(segment, arrays[encoded[0]], one)
                continue
            rows = slice(segment.first[one], segment.first[one + 1])
            block = np.zeros((rows.stop - rows.start, self.width), self.dtype)
            mine = {name: array[rows] for name, array in arrays.items()}  # a stream without columns is not stored
            if self.layout:
                self.layout.fill(block, self.columns, segment, mine)
            for name in mine.keys() & self.columns.keys() if not self.layout else ():
                block[:, self.columns[name]] = mine[name].reshape(len(block), -1)
            yield block

    def _frames(self, segment: Segment, places: np.ndarray, one: int) -> np.ndarray:
        try:
            pixels = np.ascontiguousarray(segment.frames(self.fields[0], places, one))
        except EpisodeError as error:
            raise CorpusError(
                f"windows: {self.fields[0]} of episode {segment.columns['hash'][one][:12]}: {error}; its source gave "
                "it so: tombstone the episode, or select others"
            ) from error
        return pixels.reshape(len(pixels), self.width)


def whose(segment: Segment) -> str:
    """A segment in words, by its first episode."""
    task, digest = segment.columns["task"][0], segment.columns["hash"][0]
    return f"in schema {segment.robot} (task {task}, episode {digest[:12]})"


def fill(corpus, decoder: Decoder, parts: list, files: list[tuple[str, slice]], first: int, counts: list) -> list[int]:
    """Write episodes of segments, [(part, [number in it])], to their place in the files of the fields, from row `first`
    on: the crc32 of each. `corpus` is one, or the path of one; `counts` are the rows that each episode has."""
    return keep(decoded(corpus, decoder, parts, counts), decoder, files, first)


def sent(corpus: tuple[str, str], decoder: Decoder, parts: list, counts: list) -> list[np.ndarray] | None:
    """The same episodes from a machine that need not see the files, [T+1, W] each; None where it does not see the
    corpus, (path, id), either."""
    from flywheel.corpus import Corpus

    try:
        found = Corpus(corpus[0])
        found.history.refresh()
    except (CorpusError, OSError):
        return None
    return [*decoded(found, decoder, parts, counts)] if found.id == corpus[1] else None


def decoded(corpus, decoder: Decoder, parts: list, counts: list) -> Iterator[np.ndarray]:
    """[T+1, W] of each episode of `parts`, as long as the log says."""
    if isinstance(corpus, (str, Path)):
        from flywheel.corpus import Corpus

        corpus = Corpus(corpus)
        corpus.history.refresh()
    wanted = iter(counts)
    for part, episodes in parts:
        segment = corpus.reader.segment(part)
        for block, count in zip(decoder.blocks(segment, episodes), wanted, strict=False):
            if len(block) != count:
                raise CorpusError(f"windows: {whose(segment)}: {len(block)} rows where the log has {count}; fsck")
            yield block


def keep(blocks: Iterable[np.ndarray], decoder: Decoder, files: list[tuple[str, slice]], first: int) -> list[int]:
    """Write episodes to the files of the fields, from row `first` on; the crc32 of each."""
    found = []
    with ExitStack() as opened:
        data = [(opened.enter_context(open(path, "r+b")), columns) for path, columns in files]
        for file, columns in data:
            file.seek(first * (columns.stop - columns.start) * decoder.dtype.itemsize)
        for block in blocks:
            crc = 0
            for file, columns in data:
                one = np.ascontiguousarray(block[:, columns])
                file.write(one)
                crc = zlib.crc32(one, crc)
            found.append(crc)
        for file, _ in data:  # only these: after a power cut the other two show by their checksums
            file.flush()
            os.fsync(file.fileno())
    return found
