"""LeRobotDataset v3.0: data/chunk-*/file-*.parquet holds many episodes, meta/episodes/ says which rows are whose.

source= names the data set's meta/info.json. `obs_keys` are concatenated into `state` (default observation.state; other
observations of numbers keep their names). There is no final observation, so the last action is lost; a data set that
`flywheel export` wrote keeps it and comes back whole. Cameras are all features of images and video, or those that `cameras`
names, as bytes: nothing is decoded, and a video that episodes share is one file in the corpus too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from flywheel_datasets import _lerobot, _outcome

from flywheel.episode import Episode, EpisodeError
from flywheel.frames import video

parts = _lerobot.parts


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float | None = None,
    cameras: list[str] | None = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the episodes in their order, or an EpisodeError in the place of one that cannot be read."""
    root, info = _lerobot.opened(path, ("v3.0",))
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [*_lerobot.numeric(info), *_lerobot.clock(info), "episode_index"]
    chosen = _lerobot.cameras(info, cameras, str(path))
    columns += [feature for feature in chosen.values() if info["features"][feature]["dtype"] == "image"]
    _lerobot.observed(info, obs_keys, str(path))
    try:
        files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
        plain = [c for c in pq.read_schema(files[0]).names if not c.startswith("stats/")]
        listing = pa.concat_tables([pq.read_table(file, columns=plain) for file in files]).to_pylist()
        sparse = False
        if "next.reward" in columns and "next.success" not in columns:
            parts = [pq.read_table(f, columns=["next.reward"]) for f in sorted((root / "data").glob("*/*.parquet"))]
            sparse = _outcome.scores(np.concatenate([_lerobot.array(p, "next.reward", str(root)) for p in parts]))
    except (OSError, IndexError, KeyError, ValueError, pa.ArrowException) as error:
        raise EpisodeError(f"{path}: meta/episodes or data cannot be read: {error!r}") from error

    @functools.lru_cache(maxsize=1)  # episodes come in the order of the files
    def rows(file: Path):
        return pq.read_table(file, columns=columns)

    for told in listing:
        number = told["episode_index"]
        file = root / info["data_path"].format(chunk_index=told["data/chunk_index"], file_index=told["data/file_index"])
        where = f"{path}: episode {number}"
        try:
            table = rows(file)
            here = np.flatnonzero(table.column("episode_index").to_numpy() == number)
            if len(here) != told["length"] or not len(here) or here[-1] - here[0] + 1 != len(here):
                raise EpisodeError(f"{where}: {len(here)} rows in {file.name}; expected {told['length']} in a row")
            table = table.slice(here[0], len(here))
            mine = "flywheel" in info and told.get("flywheel") and obs_keys is None

            def images(key: str, table=table, told=told, more=bool(mine)):
                if info["features"][key]["dtype"] == "image":
                    return _lerobot.embedded(table.column(key), told[f"final.{key}"] if more else None)
                place = {k: told[f"videos/{key}/{k}"] for k in ("chunk_index", "file_index", "from_timestamp")}
                begin, file = place.pop("from_timestamp"), info["video_path"].format(video_key=key, **place)
                return video(root / file, begin, table.num_rows + more, float(info["fps"]))

            if mine:
                found = _lerobot.whole(
                    table,
                    lambda name, told=told: told[f"final.{name}"],
                    told["flywheel"],
                    info,
                    where,
                    root,
                    images,
                    chosen,
                )
                yield found.replace(origin=origin or found.origin, fps=float(fps or found.fps))
                continue
            yield _lerobot.episode(
                table, info, where, root=root, number=number, tasks=list(told["tasks"]), obs_keys=obs_keys,
                origin=origin, fps=fps, sparse=sparse, images=images, cameras=chosen,
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, OSError, pa.ArrowException) as error:
            yield error if isinstance(error, EpisodeError) else EpisodeError(f"{where}: {error!r}")
