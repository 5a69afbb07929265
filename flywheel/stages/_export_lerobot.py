"""LeRobotDataset v3.0, written by pyarrow; lerobot 0.4.4 loads it offline. T rows an episode.

The final observation, seed, origin and the like stand in columns `final.*` and `flywheel` of meta/episodes, which lerobot
leaves alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from flywheel import store as files
from flywheel.episode import Episode
from flywheel.stages import _export_cameras, _export_survey

NAME = "lerobot_v3"
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILE_BYTES, CHUNK_FILES = 100 * 2**20, 1000
QUANTILES = _export_cameras.QUANTILES
OWN = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def write(folder: Path, episodes: Iterable[Episode], seen: _export_survey.Survey, cfg: dict[str, Any]) -> None:
    """The data set under `folder`; `seen` is told what is lost."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    fps = rate(seen, cfg)
    plain = "LeRobot holds numbers in rows of one axis, and cameras of three colours"
    kept = _export_survey.keep(seen, lambda s: s.codecs or (len(s.shape) <= 1 and s.dtype[1] in "biuf"), plain)
    cameras = [_export_cameras.Camera(stream, seen, fps, CHUNK_FILES) for stream in kept if stream.codecs]
    kept = {title(stream): stream for stream in kept if not stream.codecs}
    judged = seen.unknown < seen.fps.total()
    if judged and seen.unknown:
        seen.lost.append(
            f"success, unknown of {seen.unknown} episodes: next.success is False there, as if they had failed"
        )
    if double := ", ".join(name for name, s in kept.items() if s.dtype[1:] == "f8" and s.shape in ((), (1,))):
        seen.aside.append(f"float64 of {double} (lerobot's items are float32)")
    seen.aside.append("final observation, origin, seed, terminated, success and meta (columns of meta/episodes)")
    spec = {name: feature(s.dtype, s.shape) for name, s in kept.items()}
    spec |= {name: feature("|b1", ()) for name in (["next.done", "next.success"] if judged else ["next.done"])}
    spec |= {name: feature(dtype, ()) for name, dtype in OWN.items()}
    tasks: dict[str, int] = {}
    listing: list[dict[str, Any]] = []
    begin, at, out = 0, {"chunk_index": 0, "file_index": 0}, None
    for number, episode in enumerate(episodes):
        steps = len(episode)
        language = str(episode.meta.get("language") or episode.task)
        frame = np.arange(steps)
        rows = {name: np.asarray(s.of(episode))[:steps] for name, s in kept.items()}
        rows |= {"next.done": frame == steps - 1}
        rows |= {"next.success": (episode.reward > 0) & bool(episode.success)} if judged else {}
        rows |= {"timestamp": (frame / fps).astype(np.float32), "frame_index": frame, "index": begin + frame}
        rows |= {"episode_index": np.full(steps, number)}
        rows |= {"task_index": np.full(steps, tasks.setdefault(language, len(tasks)))}
        shown = {camera.name: camera.write(folder, episode) for camera in cameras}
        pictures = {name: rows for name, (_, rows) in shown.items() if rows is not None}
        table = pa.table({name: column(rows[name]) for name in spec} | pictures)
        if out is None or out.bytes > FILE_BYTES:
            if out is not None:
                out.close()
                file = at["file_index"] + 1
                at = {"chunk_index": at["chunk_index"] + file // CHUNK_FILES, "file_index": file % CHUNK_FILES}
            path = folder / DATA.format(**at)
            path.parent.mkdir(parents=True, exist_ok=True)
            out = Sized(pq.ParquetWriter(path, table.schema))
        out.write(table)
        told: dict[str, Any] = {"episode_index": number, "tasks": [language], "length": steps}
        told |= {f"data/{key}": value for key, value in at.items()}
        told |= {"dataset_from_index": begin, "dataset_to_index": begin + steps}
        told |= {f"stats/{n}/{k}": v for n in spec for k, v in statistics(rows[n]).items()}
        told |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        told |= {f"final.{n}": np.asarray(s.of(episode))[-1].tolist() for n, s in kept.items() if s.longer}
        for about, _ in shown.values():
            told |= about
        told |= {"flywheel": json.dumps(_export_survey.record(episode))}
        listing.append(told)
        begin += steps
    out.close()
    (folder / "meta" / "episodes" / "chunk-000").mkdir(parents=True)
    columns = {key: pa.array([told[key] for told in listing]) for key in listing[0]}
    pq.write_table(pa.table(columns), folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet")
    pq.write_table(named(tasks), folder / "meta" / "tasks.parquet")
    info = {
        "codebase_version": "v3.0",
        "robot_type": None,
        "total_episodes": len(listing),
        "total_frames": begin,
        "total_tasks": len(tasks),
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if fps == int(fps) else fps,
        "splits": {"train": f"0:{len(listing)}"},
        "data_path": DATA,
        "video_path": _export_cameras.VIDEO if any(camera.video for camera in cameras) else None,
        "features": spec | {camera.name: camera.feature() for camera in cameras},
        "flywheel": {
            "streams": _export_survey.streams(kept),
            "cameras": {camera.name: {"key": camera.stream.key, "raw": camera.raw} for camera in cameras},
        },
    }
    files.write_json(folder / "meta" / "info.json", info, indent=4)
    data = sorted(folder.glob("data/*/*.parquet"))
    total = {}
    for name in spec:  # one column in memory at a time
        parts = [pq.read_table(path, columns=[name]).column(name).combine_chunks() for path in data]
        flat = [
            (p.flatten() if pa.types.is_fixed_size_list(p.type) else p).to_numpy(zero_copy_only=False) for p in parts
        ]
        total[name] = statistics(np.concatenate(flat).reshape(begin, -1))
    total |= {camera.name: _export_cameras.statistics(camera.counts, camera.sampled) for camera in cameras}
    files.write_json(folder / "meta" / "stats.json", total, indent=4)


class Sized:
    """A Parquet writer that knows how much it was given."""

    def __init__(self, writer):
        self.writer, self.bytes = writer, 0

    def write(self, table) -> None:
        self.writer.write_table(table)
        self.bytes += table.nbytes

    def close(self) -> None:
        self.writer.close()


def rate(seen: _export_survey.Survey, cfg: dict[str, Any]) -> float:
    """The one rate that info.json has; ValueError if nobody knows it."""
    if cfg.get("fps"):
        return float(cfg["fps"])
    (fps, count), *others = seen.fps.most_common()
    if not all(seen.fps):
        raise ValueError(f"{seen.fps[0.0]} episodes do not know their control rate, and LeRobot needs one; say fps=...")
    if others:
        seen.lost.append(f"rates other than {fps:g} Hz, of {seen.fps.total() - count} episodes: LeRobot has one rate")
    return float(fps)


def title(stream: _export_survey.Stream) -> str:
    """obs.state -> observation.state, reward -> next.reward, extras.x as it is."""
    return {"obs": f"observation.{stream.key}", "reward": "next.reward"}.get(stream.kind, stream.name)


def feature(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    return {"dtype": np.dtype(dtype).name, "shape": list(shape) or [1], "names": None}


def column(rows: np.ndarray):
    """[T], [T, 1] -> a plain column; [T, D] -> one of lists of D."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return flat if rows.size == len(rows) else pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])


def statistics(rows: np.ndarray) -> dict[str, list]:
    """min, max, mean, std, count and quantiles over the rows, [D] each, as lerobot names them."""
    rows = np.asarray(rows, np.float64).reshape(len(rows), -1)
    out = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    out |= dict(zip(QUANTILES, np.quantile(rows, list(QUANTILES.values()), axis=0), strict=True))
    return {key: value.tolist() for key, value in out.items()} | {"count": [len(rows)]}


def named(tasks: dict[str, int]):
    """meta/tasks.parquet: a data frame whose index is the task's words."""
    import pyarrow as pa

    index, value = {"metadata": None, "pandas_type": "unicode"}, {"metadata": None, "pandas_type": "int64"}
    index |= {"name": None, "field_name": "__index_level_0__", "numpy_type": "object"}
    value |= {"name": "task_index", "field_name": "task_index", "numpy_type": "int64"}
    frame = {"index_columns": ["__index_level_0__"], "column_indexes": [], "columns": [value, index]}
    table = pa.table({"task_index": pa.array(list(tasks.values())), "__index_level_0__": pa.array(list(tasks))})
    return table.replace_schema_metadata({"pandas": json.dumps(frame)})
