"""LeRobotDataset v2.1 (and v2.0): data/chunk-*/episode_*.parquet, one file an episode; meta/episodes.jsonl,
tasks.jsonl.

source= names the data set's folder, or its meta/info.json. `obs_keys` are concatenated into `state` (default
observation.state; other observations of numbers keep their names). There is no final observation, so the last action of
each episode is lost. Cameras are all features of images and video, or those that `cameras` names, as bytes: nothing is
decoded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flywheel_datasets import _lerobot, _parquet

from flywheel import bounds
from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt
from flywheel.frames import video

parts, unit = _lerobot.parts, _lerobot.unit


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float | None = None,
    cameras: list[str] | None = None,
    outcome: Any = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield the episodes in their order, or an EpisodeError in the place of one that cannot be read."""
    root, info = _lerobot.opened(path, ("v2.0", "v2.1"))
    rule = outcomes.rule(outcome)
    chosen = _lerobot.cameras(info, cameras, str(path))
    _lerobot.observed(info, obs_keys, str(path))
    images = [feature for feature in chosen.values() if info["features"][feature]["dtype"] == "image"]
    columns = [*_lerobot.numeric(info), *_lerobot.clock(info), "frame_index", "task_index", *images]
    columns += [rule.what] if rule else []
    known = listing(root, path)

    def file(number: int, pattern: Any, **more: Any) -> Path:
        chunk = number // max(1, int(info.get("chunks_size") or 1000))
        where = f"{path}: episode {number}"
        return _lerobot.place(root, pattern, where, episode_chunk=chunk, episode_index=number, **more)

    found = (attempt(lambda n=n: file(n, info["data_path"]), "") for n in sorted(known))
    sparse = _lerobot.rewarded(info, [f for f in found if isinstance(f, Path)])
    words = _lerobot.tasks(root)
    for number, told in sorted(known.items()):
        where = f"{path}: episode {number}"

        def one(number=number, where=where, told=told) -> Episode:
            here = file(number, info["data_path"])
            there = _parquet.names(here)
            table = _lerobot.ordered(_parquet.table(here, [c for c in dict.fromkeys(columns) if c in there]), where)

            def pictured(key: str):
                if info["features"][key]["dtype"] == "image":
                    return _lerobot.embedded(table.column(key))
                return video(
                    file(number, info.get("video_path"), video_key=key), 0.0, table.num_rows, float(info["fps"])
                )

            return _lerobot.episode(
                table, info, where, root=root, number=number, tasks=_lerobot.words(told.get("tasks"), table, words),
                obs_keys=obs_keys, origin=origin, fps=fps, sparse=sparse, rule=rule, images=pictured, cameras=chosen,
            )  # fmt: skip

        yield attempt(one, where)


def listing(root: Path, path: Path) -> dict[int, dict[str, Any]]:
    """{episode: what meta/episodes.jsonl says of it}."""
    try:
        text = bounds.inside(root, "meta/episodes.jsonl", str(path)).read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {int(row["episode_index"]): row for row in rows}
    except EpisodeError:
        raise
    except Exception as error:
        raise EpisodeError(f"{path}: meta/episodes.jsonl cannot be read: {error!r}") from error
