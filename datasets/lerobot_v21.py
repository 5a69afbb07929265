"""LeRobotDataset v2.1 (and v2.0): data/chunk-*/episode_*.parquet, one file an episode; meta/episodes.jsonl, tasks.jsonl.

source= names the data set's meta/info.json. `obs_keys` are concatenated into `state` (default observation.state; other
observations of numbers keep their names). There is no final observation, so the last action of each episode is lost.
Cameras are all features of images and video, or those that `cameras` names, as bytes: nothing is decoded.
"""

from __future__ import annotations

import json
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
    root, info = _lerobot.opened(path, ("v2.0", "v2.1"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [*_lerobot.numeric(info), *_lerobot.clock(info)]
    chosen = _lerobot.cameras(info, cameras, str(path))
    columns += [feature for feature in chosen.values() if info["features"][feature]["dtype"] == "image"]
    _lerobot.observed(info, obs_keys, str(path))
    try:
        lines = (root / "meta" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
        listing = sorted((json.loads(line) for line in lines if line.strip()), key=lambda e: e["episode_index"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EpisodeError(f"{path}: meta/episodes.jsonl cannot be read: {error!r}") from error

    def file(number: int, pattern: str = info["data_path"], **more) -> Path:
        return root / pattern.format(episode_chunk=number // int(info["chunks_size"]), episode_index=number, **more)

    sparse = False
    if "next.reward" in columns and "next.success" not in columns:
        found = [file(told["episode_index"]) for told in listing]
        parts = [pq.read_table(f, columns=["next.reward"]) for f in found if f.is_file()]
        sparse = bool(parts) and _outcome.scores(
            np.concatenate([_lerobot.array(p, "next.reward", str(root)) for p in parts])
        )
    for told in listing:
        number = told["episode_index"]
        where = f"{path}: episode {number}"
        try:
            table = pq.read_table(file(number), columns=columns)
            if table.num_rows != told.get("length", table.num_rows):
                raise EpisodeError(f"{where}: {table.num_rows} rows; expected {told['length']}, as episodes.jsonl says")

            def images(key: str, table=table, number=number):
                if info["features"][key]["dtype"] == "image":
                    return _lerobot.embedded(table.column(key))
                return video(file(number, info["video_path"], video_key=key), 0.0, table.num_rows, float(info["fps"]))

            yield _lerobot.episode(
                table, info, where, root=root, number=number, tasks=list(told.get("tasks", [])), obs_keys=obs_keys,
                origin=origin, fps=fps, sparse=sparse, images=images, cameras=chosen,
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, OSError, pa.ArrowException) as error:
            yield error if isinstance(error, EpisodeError) else EpisodeError(f"{where}: {error!r}")
