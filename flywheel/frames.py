"""A camera's frames as their source encoded them: bytes that are kept as they came, decoded when pixels are asked for.

    jpeg, png   blobs are pictures, row n shows blobs[at[n]]
    mp4         blobs is one video file, which episodes may share; row n shows frame at[n] as displayed

Frames behave as an array [N, H, W, 3] uint8: len(frames), frames.shape, frames[3], frames[2:5], np.asarray(frames).
Nothing is ever encoded again. PyAV and Pillow are imported only to look into the bytes."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import bounds
from flywheel.episode import EpisodeError

CACHE_BYTES = 256 * 2**20
PICTURES = {"JPEG": "jpeg", "PNG": "png"}
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")  # 8 bits a channel


class Bounded:
    """Values by key, `limit` bytes of them or a single larger one; those that were not used for longest go."""

    def __init__(self, limit: int):
        self.limit, self.bytes = limit, 0
        self._kept: OrderedDict[Any, tuple[Any, int]] = OrderedDict()

    def find(self, key: Any) -> Any:
        """The value, or None."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def put(self, key: Any, value: Any, size: int) -> Any:
        """Keep a value that is not there yet; the value."""
        self._kept[key], self.bytes = (value, size), self.bytes + size
        while self.bytes > self.limit and len(self._kept) > 1:
            self.bytes -= self._kept.popitem(last=False)[1][1]
        return value


CACHE = Bounded(CACHE_BYTES)  # of encoded files and decoded frames, of all episodes in this process


class Blob:
    """Bytes that are read when they are needed, `size` of them with this `sha256`; `load` answers for that."""

    def __init__(self, load: Callable[[], bytes], size: int, sha256: str | None = None):
        self.read, self.size, self._sha256 = load, size, sha256

    @property
    def sha256(self) -> str:
        if self._sha256 is None:
            self._sha256 = hashlib.sha256(self.read()).hexdigest()
        return self._sha256


class Frames:
    """`codec` "jpeg", "png" or "mp4"; `blobs` and `at` [N] int64 as above; `size` (H, W).

    channels  "rgb", or "bgr" where the source gave its encoder the colours in the other order: pixels come as it had
    them"""

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, codec: str, size: tuple[int, int], blobs: list[Blob], at: np.ndarray, channels: str = "rgb"):
        at = np.asarray(at, np.int64)
        if codec != "mp4":  # only what is shown, in the order in which it first is: equal frames have equal bytes
            used, numbers = first_seen(at)
            blobs, at = [blobs[at[position]] for position in used], numbers
        self.codec, self.blobs, self.at, self.channels = codec, blobs, at, channels
        self.shape = (len(self.at), *map(int, size), 3)

    def __len__(self) -> int:
        return len(self.at)

    def __repr__(self) -> str:
        return f"<Frames {list(self.shape)} as {self.codec}>"

    @property
    def nbytes(self) -> int:
        """Encoded bytes; of a video those of the whole file."""
        return sum(blob.size for blob in self.blobs)

    def take(self, rows: np.ndarray | slice) -> Frames:
        """Some of the rows, still encoded."""
        return Frames(self.codec, self.shape[1:3], self.blobs, self.at[rows], self.channels)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Decoded rows: [H, W, 3] for a number, else [n, H, W, 3]. EpisodeError for bytes that cannot be decoded."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        rows = np.arange(len(self))[first]
        out = self._decode(np.atleast_1d(rows))
        return out[(slice(None), *rest)] if np.ndim(rows) else out[(0, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def feed(self, digest: Any) -> None:
        """Everything that decides the pixels, into a hash."""
        digest.update(f"{self.codec} {self.channels} {self.shape}\n".encode() + self.at.astype("<i8").tobytes())
        for blob in self.blobs:
            digest.update(bytes.fromhex(blob.sha256))

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        wanted = self.at[rows]
        out = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for number, frame in (self._film if self.codec == "mp4" else self._pictures)(wanted):
            if frame.shape != out.shape[1:]:
                raise EpisodeError(f"{self}: a frame of {list(frame.shape)}; expected {list(out.shape[1:])}")
            out[wanted == number] = frame
        return out[..., ::-1] if self.channels == "bgr" else out

    def _pictures(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        from PIL import Image

        for number in np.unique(wanted).tolist():
            data = io.BytesIO(self.blobs[number].read())
            try:
                frame = np.asarray(Image.open(data).convert("RGB"))
            except Exception as error:  # what Pillow raises for damaged bytes
                raise EpisodeError(f"{self}: picture {number} cannot be decoded: {error}") from error
            yield number, frame

    def _film(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Where only some rows are asked for, what decoding them passes is kept: the next ones will be near."""
        blob, few = self.blobs[0], len(wanted) < len(self)
        missing = set()
        for number in np.unique(wanted).tolist():
            frame = CACHE.find((blob.sha256, number))
            if frame is None:
                missing.add(number)
            else:
                yield number, frame
        if missing:
            for number, frame in decoded(blob.read(), times(blob), sorted(missing), ahead=few):
                if few and CACHE.find((blob.sha256, number)) is None:
                    CACHE.put((blob.sha256, number), frame, frame.nbytes)
                if number in missing:
                    yield number, frame


def pictures(data: Iterable[bytes], channels: str = "rgb") -> Frames:
    """Frames of a picture each, in JPEG or PNG; equal ones are kept once. EpisodeError unless all are of one kind
    and size."""
    from PIL import Image

    data = list(data)
    used, at = first_seen([hashlib.sha256(one).digest() for one in data])
    kinds, blobs = set(), []
    for number in used:
        one = bytes(data[number])
        try:
            with Image.open(io.BytesIO(one)) as seen:
                kinds.add((PICTURES.get(seen.format), seen.height, seen.width))
                mode, size = seen.mode, seen.height * seen.width * 3
        except Image.DecompressionBombError as error:
            raise EpisodeError(f"frame {number}: {error}") from error
        except Exception:  # what Pillow raises for damaged bytes
            raise EpisodeError(f"frame {number}: {len(one)} bytes that are no picture") from None
        bounds.allow(size, len(one), f"frame {number}: a picture")
        if mode not in MODES:
            raise EpisodeError(f"frame {number}: a picture of mode {mode}; expected 8 bits a channel")
        blobs.append(Blob(lambda one=one: one, len(one)))
    if len(kinds) != 1 or None in next(iter(kinds)):
        raise EpisodeError(
            f"pictures of (kind, height, width) {sorted(kinds, key=str)[:5]}; expected JPEG or PNG of one size"
        )
    codec, *size = kinds.pop()
    return Frames(codec, tuple(size), blobs, at, channels)


def video(path: Path, begin: float, count: int, fps: float) -> Frames:
    """`count` frames of a video file from `begin` (seconds) on, at `fps`: for each moment the frame nearest to it.

    EpisodeError where there is none within half a step.
    """
    path = Path(path)
    stat = path.stat()
    blob = _file(path, stat.st_size, stat.st_mtime_ns)
    seconds, _, size = times(blob)
    bounds.allow(size[0] * size[1] * 3, stat.st_size, f"{path}: a frame")
    if not (np.isfinite(begin) and np.isfinite(fps) and fps > 0):
        raise EpisodeError(f"{path}: frames from {begin} s on at {fps} Hz; expected numbers")
    moments = begin + np.arange(count) / fps
    at = nearest(seconds, moments)
    off = np.abs(seconds[at] - moments)
    if off.max(initial=0) > 0.5 / fps:
        found = int((off <= 0.5 / fps).sum())
        raise EpisodeError(f"{path}: {found} frames from {begin:.3f} s on; expected {count}")
    return Frames("mp4", size, [blob], at)


@lru_cache(maxsize=64)
def _file(path: Path, size: int, changed: int) -> Blob:
    """A video file; read again later, it must have the bytes that it has now."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()

    def load() -> bytes:
        data = CACHE.find(sha256)
        if data is None:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise EpisodeError(f"{path}: the video changed while it was read; read it again")
            CACHE.put(sha256, data, len(data))
        return data

    return Blob(load, size, sha256)


def times(blob: Blob) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Of a video: seconds [F] of its frames as they are displayed, the numbers of its key frames, and (H, W)."""
    found = CACHE.find((blob.sha256, "times"))
    if found is None:
        import av

        try:
            with av.open(io.BytesIO(blob.read())) as file:
                stream = file.streams.video[0]
                packets = [(p.pts, p.is_keyframe) for p in file.demux(stream) if p.pts is not None and not p.is_discard]
                size = stream.height, stream.width
                seconds = np.asarray([float(pts * stream.time_base) for pts, _ in sorted(packets)])
        except EpisodeError:
            raise
        except Exception as error:  # FFmpeg's, and what a stream without times raises
            raise EpisodeError(f"no video that can be read: {error!r}") from error
        if not packets:
            raise EpisodeError("a video without a frame")
        keys = np.union1d([0], np.flatnonzero([key for _, key in sorted(packets)]))
        found = CACHE.put((blob.sha256, "times"), (seconds, keys, size), seconds.nbytes + keys.nbytes)
    return found


def decoded(data: bytes, about: tuple, wanted: list[int], ahead: bool) -> Iterator[tuple[int, np.ndarray]]:
    """(number, [H, W, 3]) of the frames of a video that are passed on the way to those `wanted` (ascending), from the
    nearest key frame on; with `ahead` up to the next key frame. EpisodeError where one of them does not come."""
    import av

    seconds, keys, _ = about
    middles = (seconds[1:] + seconds[:-1]) / 2
    with av.open(io.BytesIO(data)) as file:
        stream = file.streams.video[0]
        position, frames = -1, iter(())
        for number in wanted:
            if number < position:
                continue
            key = int(keys[np.searchsorted(keys, number, "right") - 1])
            end = int([*keys, len(seconds)][np.searchsorted(keys, number, "right")]) if ahead else number + 1
            if position < 0 or key > position:
                file.seek(round(seconds[key] / stream.time_base), stream=stream)
                frames = file.decode(stream)
            seen = False
            try:
                for frame in frames:
                    here = int(np.searchsorted(middles, frame.time))
                    position = here + 1
                    seen |= here == number
                    yield here, frame.to_ndarray(format="rgb24")
                    if position >= end:
                        break
            except av.FFmpegError as error:
                raise EpisodeError(f"frame {number} of a video cannot be decoded: {error}") from error
            if not seen:
                raise EpisodeError(f"frame {number} of a video of {len(seconds)} cannot be decoded")


def nearest(seconds: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """For each moment the number of the frame whose time is nearest."""
    return np.searchsorted((seconds[1:] + seconds[:-1]) / 2, moments)


def first_seen(values: Iterable[Any]) -> tuple[list[int], np.ndarray]:
    """Where each different value stands first, and for every value the number of that: [n] and [N]."""
    numbers: dict[Any, int] = {}
    used, at = [], []
    for position, value in enumerate(values.tolist() if isinstance(values, np.ndarray) else values):
        if value not in numbers:
            numbers[value] = len(used)
            used.append(position)
        at.append(numbers[value])
    return used, np.asarray(at, np.int64)
