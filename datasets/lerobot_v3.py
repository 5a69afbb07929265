"""LeRobotDataset v3.0: data/chunk-*/file-*.parquet holds many episodes; its episode_index says which rows are whose.

source= names the data set's folder, or its meta/info.json. `obs_keys` are concatenated into `state` (default
observation.state; other observations of numbers keep their names). There is no final observation, so the last action is
lost; a data set that `flywheel export` wrote keeps it and comes back whole. Cameras are all features of images and
video, or those that `cameras` names, as bytes: nothing is decoded, and a video that episodes share is one file in the
corpus too.

`write` makes a data set that lerobot 0.4.4 loads offline, T rows an episode. The final observation, seed, origin and
the like stand in columns `final.*` and `flywheel` of meta/episodes, which lerobot leaves alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _lerobot, _lerobot_cameras, _parquet, _survey

from flywheel import bounds
from flywheel import outcome as outcomes
from flywheel import store as files
from flywheel.episode import Episode, EpisodeError, attempt
from flywheel.frames import Frames, video

parts, unit = _lerobot.parts, _lerobot.unit
ROWS = ("episode_index", "frame_index", "task_index", "index")
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILE_BYTES, CHUNK_FILES = 100 * 2**20, 1000
QUANTILES = _lerobot_cameras.QUANTILES
OWN = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float | None = None,
    cameras: list[str] | None = None,
    outcome: Any = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the episodes in their order, or an EpisodeError in the place of one that cannot be read."""
    root, info = _lerobot.opened(path, ("v3.0",))
    rule = outcomes.rule(outcome)
    chosen = _lerobot.cameras(info, cameras, str(path))
    _lerobot.observed(info, obs_keys, str(path))
    known, files = (
        listing(root, path),
        [bounds.inside(root, f, str(path)) for f in sorted((root / "data").glob("*/*.parquet"))],
    )
    held, broken = where_rows_are(files)
    sparse, words = _lerobot.rewarded(info, files), _lerobot.tasks(root)
    images = [f for f in chosen.values() if info["features"][f]["dtype"] == "image"]
    columns = [*_lerobot.numeric(info), *_lerobot.clock(info), *ROWS, *images, *([rule.what] if rule else [])]
    loaded: dict[Path, Any] = {}  # one file: episodes come in the order of the files

    def rows(number: int, where: str):
        if number not in held:
            lost = "; ".join(broken)[:500]
            raise EpisodeError(f"{where}: no rows in data/*/*.parquet{f' ({lost})' if lost else ''}; expected some")
        file, at = held[number]
        if file not in loaded:
            loaded.clear()
            there = _parquet.names(file)
            loaded[file] = _parquet.table(file, [c for c in dict.fromkeys(columns) if c in there])
        together = at[-1] - at[0] + 1 == len(at)
        return _lerobot.ordered(loaded[file].slice(at[0], len(at)) if together else loaded[file].take(at), where)

    for number in sorted({*known, *held}):
        where, told = f"{path}: episode {number}", known.get(number, {})

        def one(number=number, where=where, told=told) -> Episode:
            table = rows(number, where)
            mine = "flywheel" in info and told.get("flywheel") and obs_keys is None

            def pictured(key: str) -> Frames:
                if info["features"][key]["dtype"] == "image":
                    return _lerobot.embedded(table.column(key), told[f"final.{key}"] if mine else None)
                return film(root, info, key, told, table, table.num_rows + bool(mine), where)

            if mine:
                final = lambda name: told[f"final.{name}"]  # noqa: E731
                found = _lerobot.whole(table, final, told["flywheel"], info, where, root, pictured, chosen)
                return found.replace(origin=origin or found.origin, fps=_columns.rate(fps or found.fps, where))
            return _lerobot.episode(
                table, info, where, root=root, number=number, tasks=_lerobot.words(told.get("tasks"), table, words),
                obs_keys=obs_keys, origin=origin, fps=fps, sparse=sparse, rule=rule, images=pictured, cameras=chosen,
            )  # fmt: skip

        yield attempt(one, where)


def listing(root: Path, path: Path) -> dict[int, dict[str, Any]]:
    """{episode: what meta/episodes says of it}; EpisodeError where it cannot be read at all."""
    out = {}
    try:
        for file in sorted((root / "meta" / "episodes").glob("*/*.parquet")):
            file = bounds.inside(root, file, str(path))
            plain = [c for c in _parquet.names(file) if not c.startswith("stats/")]
            out |= {int(row["episode_index"]): row for row in _parquet.table(file, plain).to_pylist()}
    except EpisodeError:
        raise
    except Exception as error:
        raise EpisodeError(f"{path}: meta/episodes cannot be read: {error!r}") from error
    return out


def where_rows_are(files: list[Path]) -> tuple[dict[int, tuple[Path, np.ndarray]], list[str]]:
    """{episode: (file, its rows)} by the data's own episode_index, whatever meta says; and why which file cannot be
    read.

    An episode in two files counts as the one that was read last: a file that was written again.
    """
    held, broken = {}, []
    for file in files:
        try:
            number = _lerobot.array(_parquet.table(file, ["episode_index"]), "episode_index", file.name).reshape(-1)
            order = np.argsort(number, kind="stable")
            starts = np.flatnonzero(np.diff(number[order], prepend=number[order][:1] - 1))
            for at in np.split(order, starts[1:]) if len(order) else ():
                held[int(number[at[0]])] = (file, at)
        except Exception as error:
            broken.append(f"{file.name}: {error}"[:300])
    return held, broken


def film(root: Path, info: dict[str, Any], key: str, told: dict[str, Any], table, count: int, where: str) -> Frames:
    """An episode's frames of a video. Where meta does not say which file, the only one there is, by the rows' own
    `index`."""
    fields = {k: told.get(f"videos/{key}/{k}") for k in ("chunk_index", "file_index", "from_timestamp")}
    begin = fields.pop("from_timestamp")
    if None in fields.values() or begin is None:
        files = sorted((root / "videos" / bounds.inside(root, key, where).name).glob("*/*.mp4"))
        if len(files) != 1 or "index" not in table.column_names or not info["fps"]:
            raise EpisodeError(
                f"{where}: meta/episodes does not say which video of {key} is its own; leave it out with cameras="
            )
        return video(
            bounds.inside(root, files[0], where), table.column("index")[0].as_py() / info["fps"], count, info["fps"]
        )
    file = _lerobot.place(root, info.get("video_path"), where, video_key=key, **fields)
    return video(file, float(begin), count, float(info["fps"]))


def write(folder: Path, episodes: Iterable[Episode], seen: _survey.Survey, fps: float | None) -> None:
    """The data set under `folder`; `seen` is told what is lost."""
    data_set = _DataSet(folder, seen, rate(seen, fps))
    for episode in episodes:
        data_set.add(episode)
    data_set.close()


class _DataSet:
    """A data set under way: streams, cameras and tasks, the Parquet file that is open, and a line for each episode
    so far."""

    def __init__(self, folder: Path, seen: _survey.Survey, fps: float):
        self.folder, self.fps = folder, fps
        plain = "LeRobot holds numbers in rows of one axis, and cameras of three colours"
        kept = _survey.keep(seen, lambda s: s.codecs or (len(s.shape) <= 1 and s.dtype[1] in "biuf"), plain)
        self.cameras = [_lerobot_cameras.Camera(stream, seen, fps, CHUNK_FILES) for stream in kept if stream.codecs]
        self.kept = {title(stream): stream for stream in kept if not stream.codecs}
        self.judged = seen.unknown < seen.fps.total()
        if self.judged and seen.unknown:
            seen.lost.append(
                f"success, unknown of {seen.unknown} episodes: next.success is False there, as if they had failed"
            )
        if double := ", ".join(name for name, s in self.kept.items() if s.dtype[1:] == "f8" and s.shape in ((), (1,))):
            seen.aside.append(f"float64 of {double} (lerobot's items are float32)")
        seen.aside.append("final observation, origin, seed, terminated, success and meta (columns of meta/episodes)")
        self.spec = {name: feature(s.dtype, s.shape) for name, s in self.kept.items()}
        for name, stream in self.kept.items():
            if stream.name == "obs.state" and stream.shape == (len(seen.names or ()),):
                self.spec[name]["names"] = seen.names
        self.spec |= {name: feature("|b1", ()) for name in ("next.done", "next.success")[: 1 + self.judged]}
        self.spec |= {name: feature(dtype, ()) for name, dtype in OWN.items()}
        self.tasks: dict[str, int] = {}
        self.lines: list[dict[str, Any]] = []
        self.begin, self.at, self.out = 0, {"chunk_index": 0, "file_index": 0}, None

    def add(self, episode: Episode) -> None:
        """Write an episode's rows and pictures, and its line in meta/episodes."""
        import pyarrow as pa

        steps, number = len(episode), len(self.lines)
        language = str(episode.meta.get("language") or episode.task)
        rows = self.rows(episode, number, self.tasks.setdefault(language, len(self.tasks)))
        shown = {camera.name: camera.write(self.folder, episode) for camera in self.cameras}
        pictures = {name: made for name, (_, made) in shown.items() if made is not None}
        self.file(pa.table({name: column(rows[name]) for name in self.spec} | pictures))
        line: dict[str, Any] = {"episode_index": number, "tasks": [language], "length": steps}
        line |= {f"data/{key}": value for key, value in self.at.items()}
        line |= {"dataset_from_index": self.begin, "dataset_to_index": self.begin + steps}
        line |= {f"stats/{n}/{k}": v for n in self.spec for k, v in statistics(rows[n]).items()}
        line |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        line |= {f"final.{n}": np.asarray(s.of(episode))[-1].tolist() for n, s in self.kept.items() if s.longer}
        for about, _ in shown.values():
            line |= about
        self.lines.append(line | {"flywheel": json.dumps(_survey.record(episode))})
        self.begin += steps

    def rows(self, episode: Episode, number: int, task: int) -> dict[str, np.ndarray]:
        """The columns [T, ...] of an episode."""
        steps = len(episode)
        frame = np.arange(steps)
        rows = {name: np.asarray(s.of(episode))[:steps] for name, s in self.kept.items()}
        rows |= {"next.done": frame == steps - 1, "frame_index": frame, "index": self.begin + frame}
        rows |= {"next.success": (episode.reward > 0) & bool(episode.success)} if self.judged else {}
        rows |= {"timestamp": (frame / self.fps).astype(np.float32)}
        return rows | {"episode_index": np.full(steps, number), "task_index": np.full(steps, task)}

    def file(self, table) -> None:
        """Write rows into the Parquet file that is open, or into the next one where that is full."""
        import pyarrow.parquet as pq

        if self.out is None or self.out.bytes > FILE_BYTES:
            if self.out is not None:
                self.out.close()
                file = self.at["file_index"] + 1
                self.at = {
                    "chunk_index": self.at["chunk_index"] + file // CHUNK_FILES,
                    "file_index": file % CHUNK_FILES,
                }
            path = self.folder / DATA.format(**self.at)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.out = Sized(pq.ParquetWriter(path, table.schema))
        self.out.write(table)

    def close(self) -> None:
        """Write what stands in meta/."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.out.close()
        meta = self.folder / "meta"
        (meta / "episodes" / "chunk-000").mkdir(parents=True)
        columns = {key: pa.array([line[key] for line in self.lines]) for key in self.lines[0]}
        pq.write_table(pa.table(columns), meta / "episodes" / "chunk-000" / "file-000.parquet")
        pq.write_table(named(self.tasks), meta / "tasks.parquet")
        files.write_json(meta / "info.json", self.info(), indent=4)
        data = sorted(self.folder.glob("data/*/*.parquet"))
        total = {}
        for name in self.spec:  # one column in memory at a time
            parts = [pq.read_table(path, columns=[name]).column(name).combine_chunks() for path in data]
            flat = [
                (p.flatten() if pa.types.is_fixed_size_list(p.type) else p).to_numpy(zero_copy_only=False)
                for p in parts
            ]
            total[name] = statistics(np.concatenate(flat).reshape(self.begin, -1))
        total |= {camera.name: _lerobot_cameras.statistics(camera.counts, camera.sampled) for camera in self.cameras}
        files.write_json(meta / "stats.json", total, indent=4)

    def info(self) -> dict[str, Any]:
        """meta/info.json."""
        cameras = {camera.name: {"key": camera.stream.key, "raw": camera.raw} for camera in self.cameras}
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": len(self.lines),
            "total_frames": self.begin,
            "total_tasks": len(self.tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": int(self.fps) if self.fps == int(self.fps) else self.fps,
            "splits": {"train": f"0:{len(self.lines)}"},
            "data_path": DATA,
            "video_path": _lerobot_cameras.VIDEO if any(camera.video for camera in self.cameras) else None,
            "features": self.spec | {camera.name: camera.feature() for camera in self.cameras},
            "flywheel": {"streams": _survey.streams(self.kept), "cameras": cameras},
        }


class Sized:
    """A Parquet writer that knows how much it was given."""

    def __init__(self, writer):
        self.writer, self.bytes = writer, 0

    def write(self, table) -> None:
        self.writer.write_table(table)
        self.bytes += table.nbytes

    def close(self) -> None:
        self.writer.close()


def rate(seen: _survey.Survey, fps: float | None) -> float:
    """The one rate that info.json has; ValueError if nobody knows it."""
    if fps:
        return fps
    (fps, count), *others = seen.fps.most_common()
    if not all(seen.fps):
        raise ValueError(f"{seen.fps[0.0]} episodes do not know their control rate, and LeRobot needs one; say fps=...")
    if others:
        seen.lost.append(f"rates other than {fps:g} Hz, of {seen.fps.total() - count} episodes: LeRobot has one rate")
    return float(fps)


def title(stream: _survey.Stream) -> str:
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
