"""LeRobotDataset v3.0: data/chunk-*/file-*.parquet holds many episodes; its episode_index says which rows are whose.

source= names the data set's folder, or its meta/info.json. `obs_keys` are concatenated into `state` (default observation.state; other
observations of numbers keep their names). There is no final observation, so the last action is lost; a data set that
`flywheel export` wrote keeps it and comes back whole. Cameras are all features of images and video, or those that `cameras`
names, as bytes: nothing is decoded, and a video that episodes share is one file in the corpus too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _lerobot, _parquet

from flywheel import bounds
from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt
from flywheel.frames import Frames, video

parts, unit = _lerobot.parts, _lerobot.unit
ROWS = ("episode_index", "frame_index", "task_index", "index")


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
    """{episode: (file, its rows)} by the data's own episode_index, whatever meta says; and why which file cannot be read.

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
    """An episode's frames of a video. Where meta does not say which file, the only one there is, by the rows' own `index`."""
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
