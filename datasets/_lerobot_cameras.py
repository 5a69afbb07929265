"""Cameras of a LeRobotDataset: a video stays the file that it is; pictures keep their bytes, raw frames become PNG.

A camera whose episodes do not all have one of these forms (pictures with swapped colours, a video at another rate) is
decoded and written as PNG: its pixels are there, its bytes are not, and the export says so."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _survey

from flywheel import frames as encoded
from flywheel.episode import Episode
from flywheel.frames import Frames

VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
TOLERANCE = 1e-4  # s, by which a frame may miss its moment in LeRobot
SAMPLED = 100  # frames of an episode, evenly spaced, that its statistics are made from
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


class Camera:
    """One camera on its way into a data set: what stands in its rows, in its files and in meta/."""

    def __init__(self, stream: _survey.Stream, seen: _survey.Survey, fps: float, chunk_files: int):
        self.stream, self.fps, self.chunk_files = stream, fps, chunk_files
        self.name = f"observation.images.{stream.key.removeprefix('images.')}"
        self.raw = stream.codecs == {("raw", "rgb")}
        self.video = stream.codecs == {("mp4", "rgb")} and all(regular(one, fps) for one in seen.videos[stream.name])
        self.kept = self.raw or self.video or stream.codecs <= {("jpeg", "rgb"), ("png", "rgb")}
        self.counts = np.zeros((3, 256), np.int64)
        self.sampled = 0
        self.files: dict[str, int] = {}
        self.info: dict[str, Any] = {}
        if not self.kept:
            seen.lost.append(f"{stream.name}: {stream.codec} as it is (its pixels are there, as PNG)")

    def feature(self) -> dict[str, Any]:
        about = {"shape": list(self.stream.shape), "names": ["height", "width", "channels"]}
        return {"dtype": "video", **about, "info": self.info} if self.video else {"dtype": "image", **about}

    def write(self, folder: Path, episode: Episode) -> tuple[dict[str, Any], Any]:
        """What meta/episodes says of an episode, and the column of its T rows (None for a video)."""
        frames, steps = self.stream.of(episode), len(episode)
        chosen = np.unique(np.linspace(0, steps - 1, min(steps, SAMPLED)).astype(int))
        counts = np.stack([np.bincount(c.ravel(), minlength=256) for c in np.moveaxis(frames[chosen], -1, 0)])
        self.counts, self.sampled = self.counts + counts, self.sampled + len(chosen)
        told = {f"stats/{self.name}/{key}": value for key, value in statistics(counts, len(chosen)).items()}
        if self.video:
            return told | self._place(folder, frames, steps), None
        if self.kept and not self.raw:
            data = [frames.blobs[number].read() for number in frames.at]
        else:
            data = [png(frame) for frame in np.asarray(frames)]
        return told | {f"final.{self.name}": data[-1]}, column(data[:-1])

    def _place(self, folder: Path, frames: Frames, steps: int) -> dict[str, Any]:
        """Where an episode is in which file; the file is written when it comes first."""
        (blob,) = frames.blobs
        new = blob.sha256 not in self.files
        number = self.files.setdefault(blob.sha256, len(self.files))
        at = {"chunk_index": number // self.chunk_files, "file_index": number % self.chunk_files}
        if new:
            path = folder / VIDEO.format(video_key=self.name, **at)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob.read())
            self.info = self.info or about(path, self.fps)
        begin = float(encoded.times(blob)[0][frames.at[0]])
        at |= {"from_timestamp": begin, "to_timestamp": begin + steps / self.fps}
        return {f"videos/{self.name}/{key}": value for key, value in at.items()}


def regular(frames: Frames, fps: float) -> bool:
    """Does LeRobot find the frames of an episode at its rate, and `flywheel ingest` the same ones?"""
    seconds = encoded.times(frames.blobs[0])[0]
    moments = seconds[frames.at[0]] + np.arange(len(frames)) / fps
    close = np.abs(seconds[frames.at] - moments).max() < TOLERANCE
    return bool(close) and np.array_equal(encoded.nearest(seconds, moments), frames.at)


def about(path: Path, fps: float) -> dict[str, Any]:
    """What LeRobot notes of a video."""
    import av

    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        seen = {
            "height": stream.height,
            "width": stream.width,
            "codec": stream.codec.canonical_name,
            "pix_fmt": stream.pix_fmt,
        }
    seen |= {"is_depth_map": False, "fps": fps, "channels": 3}
    return {f"video.{key}": value for key, value in seen.items()} | {"has_audio": False}


def png(frame: np.ndarray) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame)).save(data, "PNG", compress_level=1)
    return data.getvalue()


def column(data: list[bytes]):
    """Pictures as Hugging Face's Image feature keeps them."""
    import pyarrow as pa

    paths = pa.nulls(len(data), pa.string())
    return pa.StructArray.from_arrays([pa.array(data, pa.binary()), paths], ["bytes", "path"])


def statistics(counts: np.ndarray, frames: int) -> dict[str, list]:
    """Of each colour over the pixels, in 0..1 and [3, 1, 1] as lerobot keeps them; counts [3, 256] of the values
    0..255."""
    levels, total = np.arange(256) / 255, counts.sum(axis=1)
    mean = counts @ levels / total
    out = {"min": [levels[c > 0].min() for c in counts], "max": [levels[c > 0].max() for c in counts], "mean": mean}
    out["std"] = np.sqrt(counts @ levels**2 / total - mean**2)
    for name, share in QUANTILES.items():
        out[name] = [levels[np.searchsorted(np.cumsum(c), share * n)] for c, n in zip(counts, total, strict=True)]
    return {key: np.reshape(value, (3, 1, 1)).tolist() for key, value in out.items()} | {"count": [frames]}
