"""What a segment keeps of cameras: raw frames as any stream; encoded ones as their source's own bytes, and where each
row is.

frames.obs.<key>   [R, 2] int64   pictures: where a row's bytes begin and end; video: which file, which frame
media/...          pictures side by side; each video once, under its hash, whatever number of episodes it shows
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from flywheel.episode import Episode
from flywheel.frames import Blob, Frames, first_seen


def is_camera(name: str, dtype: Any, row: Sequence[int]) -> bool:
    """Is a stream of arrays a camera's: obs, [H, W, 3] uint8 a row?"""
    return name.startswith("obs.") and np.dtype(dtype) == np.uint8 and len(row) == 3 and row[2] == 3


def of(episode: Episode) -> dict[str, Frames]:
    """{stream: frames} of an episode's encoded cameras."""
    return {f"obs.{key}": value for key, value in sorted(episode.obs.items()) if isinstance(value, Frames)}


def weight(episode: Episode) -> int:
    """Bytes that an episode adds to a segment before compression; a video counts nothing, others in the segment
    share it."""
    sizes = [
        value.nbytes for value in (*episode.obs.values(), *episode.extras.values()) if isinstance(value, np.ndarray)
    ]
    return sum(sizes) + sum(value.nbytes for value in of(episode).values() if value.codec != "mp4")


def encode(name: str, codec: str, several: list[Frames]) -> tuple[np.ndarray, dict[str, bytes | Blob]]:
    """Two numbers a row [R, 2] int64 and {path: bytes} for one camera of the episodes of a segment."""
    if codec == "mp4":
        used, number = first_seen([frames.blobs[0].sha256 for frames in several])
        rows = [np.column_stack([np.full(len(f), n), f.at]) for f, n in zip(several, number.tolist(), strict=True)]
        blobs = [several[position].blobs[0] for position in used]
        return np.concatenate(rows), {f"media/{blob.sha256}.mp4": blob for blob in blobs}
    data, rows = bytearray(), []
    for frames in several:
        ends = len(data) + np.cumsum([0, *(blob.size for blob in frames.blobs)])
        for blob in frames.blobs:
            data += blob.read()
        rows.append(np.column_stack([ends[frames.at], ends[frames.at + 1]]))
    return np.concatenate(rows), {f"media/{name}.{codec}": bytes(data)}


class Parts(Mapping):
    """{relative path: bytes} of a segment; what is a Blob is read when it is asked for, so one video at a time."""

    def __init__(self, parts: dict[str, bytes | Blob]):
        self.parts = parts

    def __getitem__(self, path: str) -> bytes:
        part = self.parts[path]
        return part.read() if isinstance(part, Blob) else part

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)
