"""A segment: episodes of one schema in an immutable Zarr v3 group, with their columns in one JSON file.

    segments/<ulid>/
        zarr.json  obs.state/ action/ reward/ ...   rows of all episodes one after the other, T+1 an episode in every
                                                    stream (the last row of action and reward is zero, never sampled)
        start.<key>/ statistics/                    one row an episode
        frames.obs.<key>/                           a row of an encoded camera: where its bytes begin and end in
                                                    its pictures, or which video it is in and as which frame
        media/obs.<key>.jpeg  media/<sha256>.mp4    a camera's pictures side by side; a video as it came, once
        episodes.json                               schema, per-episode columns, sha256 of every other file

zarr is imported only to encode or decode. Both go through memory: what is decoded are exactly the bytes whose sha256
was compared, so a flipped byte is an error and never data.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any

import numpy as np

from flywheel import frames as encoded
from flywheel.corpus import media, statistics
from flywheel.corpus.files import Files
from flywheel.episode import Episode, EpisodeError, check
from flywheel.frames import Blob, Frames, first_seen

FORMAT, WITH_FRAMES = 1, 2  # a segment without encoded frames is as older flywheels wrote it
COLUMNS = ("hash", "task", "origin", "seed", "success", "terminated", "fps", "length", "return_", "meta")  # stored ones
CHUNK_ROWS = 1024  # rows of low-dimensional streams in one compressed chunk
FRAME_BYTES, FRAME_ROWS = 16_384, 16  # of a camera, or rows this large: chunks of 16 frames


class CorpusError(ValueError):
    """The corpus cannot do what was asked, or its files are not what was written; the message says what to do."""


def ulid() -> str:
    """26 characters that sort by time: 48 bits of milliseconds, 80 random ones (Crockford's base 32)."""
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[(number >> shift) & 31] for shift in range(125, -1, -5))


def schema(episode: Episode) -> dict[str, Any]:
    """What episodes of one segment share.

    {"rows": {stream: [dtype, shape of a row, 0 for T rows or 1 for T+1]}, "start": {key: [dtype, shape]}} and, where
    there are encoded frames, "frames": {stream: [codec, [H, W, 3], channels]}"""
    steps = len(episode)
    rows = {}
    for name, value in _streams(episode).items():
        extra = len(value) - steps  # extras may have T or T+1 rows; a T row stream gets a zero row
        rows[name] = [_dtype(name, value), list(value.shape[1:]), extra]
    start = {
        key: [_dtype(f"start.{key}", value), list(np.shape(value))] for key, value in sorted(episode.start.items())
    }
    frames = {name: [f.codec, list(f.shape[1:]), f.channels] for name, f in media.of(episode).items()}
    return {"rows": rows, "start": start} | ({"frames": frames} if frames else {})


def robot(shape: dict[str, Any]) -> str:
    """8 digits for what the episodes of one robot share in a `schema`: names, dtypes and shapes of action and
    observations, cameras aside."""
    rows = [
        [name, *row[:2]]
        for name, row in sorted(shape["rows"].items())
        if name == "action" or (name.startswith("obs.") and not media.is_camera(name, *row[:2]))
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]


def prepare(episode: Episode, where: str) -> Episode:
    """The episode as the corpus keeps it: checked, with plain Python scalars. EpisodeError says what cannot be kept."""
    check(episode, where)
    for name in (*episode.obs, *episode.extras, *episode.start):
        if not name.isprintable() or set(name) & {"/", "\\"} or name[:1] in ("", "."):
            raise EpisodeError(f"{where}: key {name!r}; expected a name without slashes that starts with no dot")
    try:
        json.dumps(episode.meta)
    except (TypeError, ValueError) as error:
        raise EpisodeError(
            f"{where}: meta is not JSON ({error}); use str, int, float, bool, None, list, dict"
        ) from error
    seed = None if episode.seed is None else int(episode.seed)
    if seed is not None and not -(2**63) < seed < 2**63:
        raise EpisodeError(f"{where}: seed {seed} does not fit 64 bits")
    try:
        schema(episode)
    except TypeError as error:
        raise EpisodeError(f"{where}: {error}") from error
    return episode.replace(
        terminated=bool(episode.terminated),
        success=None if episode.success is None else bool(episode.success),
        seed=seed,
        fps=float(episode.fps),
    )


def encode(episodes: list[Episode]) -> media.Parts:
    """The files of a segment of `episodes`, which share one schema (see prepare, schema)."""
    shape = schema(episodes[0])
    streams: dict[str, np.ndarray] = {}
    for name, (dtype, row, _) in shape["rows"].items():
        parts = [_streams(episode)[name] for episode in episodes]
        pad = [np.zeros((len(e) + 1 - len(part), *row), dtype) for e, part in zip(episodes, parts, strict=True)]
        pairs = [piece for pair in zip(parts, pad, strict=True) for piece in pair]
        streams[name] = np.concatenate(pairs).astype(dtype, copy=False)
    for key, (dtype, _) in shape["start"].items():
        streams[f"start.{key}"] = np.stack([np.asarray(episode.start[key]) for episode in episodes]).astype(dtype)
    summed = _summed(shape)
    if summed:
        streams["statistics"] = np.stack([_summary(episode, summed) for episode in episodes])

    films, listed = {}, {}
    for name, (codec, _, _) in shape.get("frames", {}).items():
        streams[f"frames.{name}"], files = media.encode(name, codec, [media.of(episode)[name] for episode in episodes])
        listed[name] = [[path, len(data) if isinstance(data, bytes) else data.size] for path, data in files.items()]
        films |= files

    files = {**_encode_arrays(streams), **films}
    index = {
        "format": WITH_FRAMES if listed else FORMAT,
        "schema": shape,
        "columns": {
            "hash": [e.hash for e in episodes],
            "task": [e.task for e in episodes],
            "origin": [e.origin for e in episodes],
            "seed": [e.seed for e in episodes],
            "success": [e.success for e in episodes],
            "terminated": [e.terminated for e in episodes],
            "fps": [e.fps for e in episodes],
            "length": [len(e) for e in episodes],
            "return_": [float(e.reward.sum(dtype=np.float64)) for e in episodes],
            "meta": [e.meta for e in episodes],
        },
        "files": {
            name: hashlib.sha256(data).hexdigest() if isinstance(data, bytes) else data.sha256
            for name, data in sorted(files.items())
        },
    } | ({"media": listed} if listed else {})
    # meta is kept in its own order, so no sorted keys here
    files["episodes.json"] = json.dumps(index, separators=(",", ":")).encode() + b"\n"
    return media.Parts(files)


class Segment:
    """One stored segment. Its columns are read at once, its arrays when asked for."""

    def __init__(self, files: Files, name: str, sha256: str):
        self.store, self.name = files, name
        self.folder = f"segments/{name}"
        data = _verified(files, f"{self.folder}/episodes.json", sha256)
        index = json.loads(data)
        if index["format"] not in (FORMAT, WITH_FRAMES):
            raise CorpusError(
                f"{files}/{self.folder}: segment format {index['format']}, this flywheel reads {FORMAT} and "
                f"{WITH_FRAMES};"
                " update it"
            )
        self.schema: dict[str, Any] = index["schema"]
        self.columns: dict[str, list] = index["columns"]
        self.files: dict[str, str] = index["files"]
        self.robot = robot(self.schema)
        self.media: dict[str, list] = index.get("media", {})  # {stream: [[path, bytes]]}
        self.columns["cameras"] = [" ".join(name.removeprefix("obs.") for name in self.cameras())] * len(
            self.columns["hash"]
        )
        self.lengths = np.asarray(self.columns["length"], np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.lengths + 1)])  # [E+1] first row of each episode, and the end

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, field: str) -> tuple[int, ...] | None:
        """Shape of a row of a stream, or None where the segment has no such stream."""
        entry = self.schema["rows"].get(field) or self.schema.get("frames", {}).get(field)
        return None if entry is None else tuple(entry[1])

    def width(self, field: str) -> int | None:
        """Numbers in a row of a stream, or None where the segment has no such stream."""
        row = self.row(field)
        return None if row is None else int(np.prod(row, dtype=np.int64))

    def cameras(self) -> dict[str, dict[str, Any]]:
        """{stream: {"codec", "channels", "shape": [H, W, 3], "bytes": encoded}} of the cameras; of raw frames codec
        is "raw" and the bytes are those before compression."""
        found: dict[str, dict[str, Any]] = {}
        rows = sum(self.columns["length"]) + len(self.columns["length"])
        for name, (dtype, row, _) in self.schema["rows"].items():
            if media.is_camera(name, dtype, row):
                found[name] = {"codec": "raw", "channels": "rgb", "shape": row, "bytes": rows * int(np.prod(row))}
        for name, (codec, row, channels) in self.schema.get("frames", {}).items():
            size = sum(size for _, size in self.media[name])
            found[name] = {"codec": codec, "channels": channels, "shape": row, "bytes": size}
        return dict(sorted(found.items()))

    def arrays(self, names: list[str]) -> dict[str, np.ndarray]:
        """{name: array} of whole streams, decoded from verified bytes. CorpusError names a file that was changed."""
        files = {}
        for path, sha256 in self.files.items():
            if path.split("/")[0] in names or "/" not in path:
                files[path] = _verified(self.store, f"{self.folder}/{path}", sha256)
        return _decode_arrays(files, names)

    def episode(self, arrays: dict[str, np.ndarray], index: int) -> Episode:
        """Episode `index` of the segment out of its decoded `arrays` (all of them), equal to the last bit."""
        first, steps = int(self.first[index]), int(self.lengths[index])
        groups: dict[str, dict[str, np.ndarray]] = {"obs": {}, "extras": {}, "": {}}
        for name, (dtype, row, extra) in self.schema["rows"].items():
            group, _, key = name.rpartition(".") if name in ("action", "reward") else name.partition(".")
            value = arrays.get(name)
            value = np.zeros((steps + extra, *row), dtype) if value is None else value[first : first + steps + extra]
            groups[group][key] = value.copy()
        for name in self.schema.get("frames", {}):
            groups["obs"][name.removeprefix("obs.")] = self.frames(name, arrays[f"frames.{name}"], index)
        start = {}
        for key, (dtype, shape) in self.schema["start"].items():
            value = arrays.get(f"start.{key}")
            start[key] = np.zeros(shape, dtype) if value is None else np.array(value[index])
        columns = {name: self.columns[name][index] for name in COLUMNS}
        columns = {key: value for key, value in columns.items() if key not in ("hash", "length", "return_")}
        return Episode(obs=groups["obs"], extras=groups["extras"], **groups[""], start=start, **columns)

    def frames(self, name: str, places: np.ndarray, index: int) -> Frames:
        """The frames of episode `index` out of an encoded camera, whose bytes are read when they are asked for;
        `places` is the array frames.<name>."""
        codec, (height, width, _), channels = self.schema["frames"][name]
        mine = places[self.first[index] : self.first[index + 1]]
        if codec == "mp4":
            path, size = self.media[name][int(mine[0, 0])]
            blob = Blob(lambda: self.load(path), size, self.files[path])
            return Frames(codec, (height, width), [blob], mine[:, 1], channels)
        ((path, _),) = self.media[name]
        used, at = first_seen(map(tuple, mine.tolist()))
        blobs = [
            Blob(lambda begin=begin, end=end: self.load(path)[begin:end], end - begin)
            for begin, end in mine[used].tolist()
        ]
        return Frames(codec, (height, width), blobs, at, channels)

    def load(self, path: str) -> bytes:
        """A file of media/, verified, and kept for the next who asks."""
        key = (str(self.store), self.folder, path)
        data = encoded.CACHE.find(key)
        if data is None:
            data = _verified(self.store, f"{self.folder}/{path}", self.files[path])
            encoded.CACHE.put(key, data, len(data))
        return data

    def everything(self) -> dict[str, np.ndarray]:
        """All arrays that an episode needs, decoded; the bytes of encoded cameras are not read."""
        names = [*self.schema["rows"], *(f"start.{key}" for key in self.schema["start"])]
        return self.arrays([*names, *(f"frames.{name}" for name in self.schema.get("frames", {}))])

    def statistics(self) -> dict[str, np.ndarray]:
        """{stream: [E, 4, D] float64} of the numeric streams that are not images (see corpus.statistics)."""
        whole, at, parts = self.arrays(["statistics"]).get("statistics"), 0, {}
        for name in _summed(self.schema):
            width = self.width(name)
            parts[name] = np.zeros((len(self), 4, 0)) if whole is None else whole[:, :, at : at + width]
            at += width
        return parts


def _streams(episode: Episode) -> dict[str, np.ndarray]:
    """{stream: rows}: everything in an episode that has a row for each step, but for encoded frames."""
    streams = {f"obs.{key}": value for key, value in sorted(episode.obs.items()) if not isinstance(value, Frames)}
    streams |= {"action": episode.action, "reward": episode.reward}
    return streams | {f"extras.{key}": np.asarray(value) for key, value in sorted(episode.extras.items())}


def _dtype(name: str, value: Any) -> str:
    """The dtype to store, little-endian; TypeError for what is no number."""
    dtype = np.asarray(value).dtype
    if dtype.kind not in "biufc" or dtype.itemsize > (16 if dtype.kind == "c" else 8):
        raise TypeError(f"{name} has dtype {dtype}; expected bool, int, float or complex (put text into meta)")
    return dtype.newbyteorder("<").str


def _summed(shape: dict[str, Any]) -> list[str]:
    """Streams with statistics: real numbers, at most one axis a row (no images)."""
    return [
        name
        for name, (dtype, row, _) in shape["rows"].items()
        if len(row) <= 1 and np.dtype(dtype).kind in "biuf" and not name.startswith("extras.")
    ]


def _summary(episode: Episode, names: list[str]) -> np.ndarray:
    """[4, D] float64: the statistics of one episode, streams side by side."""
    streams = _streams(episode)
    return np.concatenate([statistics.summarise(streams[name]) for name in names], axis=1)


def _verified(files: Files, name: str, sha256: str) -> bytes:
    """The bytes of a file, which must have this sha256."""
    try:
        data = files.read(name)
    except FileNotFoundError:
        raise CorpusError(f"{files}/{name} is missing; restore the segment from a copy of the corpus") from None
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CorpusError(
            f"{files}/{name}: the bytes changed on disk (sha256 {found[:12]}, written as {sha256[:12]}); "
            "restore the segment from a copy, or tombstone its episodes and ingest them again"
        )
    return data


def _encode_arrays(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """{path: bytes} of a Zarr v3 group; an array without elements is left out (its shape is in the schema)."""
    import zarr
    from zarr.codecs import BloscCodec, TransposeCodec

    files: dict[str, Any] = {}
    memory = zarr.storage.MemoryStore(store_dict=files)
    zarr.create_group(store=memory, zarr_format=3)
    for name, value in arrays.items():
        if value.size == 0:
            continue
        row = value[0].nbytes
        camera = media.is_camera(name, value.dtype, value.shape[1:])
        image = camera or row > FRAME_BYTES
        chunk = FRAME_ROWS if image else CHUNK_ROWS
        shuffle = "noshuffle" if camera else "bitshuffle"
        codec = BloscCodec(cname="zstd" if image else "lz4", clevel=3 if image else 5, shuffle=shuffle)
        # a pixel's 16 values in time side by side: half the bytes of rendered frames
        filters = TransposeCodec(order=(1, 2, 3, 0)) if camera else None
        array = zarr.create_array(
            store=memory,
            name=name,
            shape=value.shape,
            dtype=value.dtype,
            chunks=(chunk, *value.shape[1:]),
            shards=(-(-len(value) // chunk) * chunk, *value.shape[1:]),
            filters=filters,
            compressors=codec,
            fill_value=0,
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},  # an all-zero chunk may hold -0.0
        )
        array[...] = value
    return {path: buffer.to_bytes() for path, buffer in files.items()}


def _decode_arrays(files: dict[str, bytes], names: list[str]) -> dict[str, np.ndarray]:
    """{name: array} of those `names` that the group has; the inverse of _encode_arrays."""
    import zarr
    from zarr.core.buffer import default_buffer_prototype

    buffer = default_buffer_prototype().buffer
    memory = zarr.storage.MemoryStore({path: buffer.from_bytes(data) for path, data in files.items()}, read_only=True)
    group = zarr.open_group(store=memory, mode="r")
    return {name: group[name][...] for name in names if f"{name}/zarr.json" in files}


def write(files: Files, episodes: list[Episode]) -> dict[str, Any]:
    """Write a segment of `episodes`; what a log entry says of it."""
    name, made = ulid(), encode(episodes)
    files.tree(f"segments/{name}", made)
    hashes = [episode.hash for episode in episodes]
    sha256 = hashlib.sha256(made["episodes.json"]).hexdigest()
    return {"segment": name, "sha256": sha256, "hashes": hashes, "steps": sum(map(len, episodes))}
