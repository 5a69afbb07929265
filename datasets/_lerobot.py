"""What LeRobotDataset v2.1 and v3.0 share: info.json, columns of Parquet to arrays, an episode from its rows.

Read by pyarrow; lerobot is not imported. A camera's pictures are the bytes in the Parquet file, its video the file itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _exported, _outcome

from flywheel.episode import Episode, EpisodeError
from flywheel.frames import Frames, pictures

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def opened(path: Path, versions: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """The folder of a data set and its info, from the folder or its meta/info.json; EpisodeError if it is no such thing."""
    path = Path(path)
    file = path / "meta" / "info.json" if path.is_dir() else path
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
        {key: (feature["dtype"], feature["shape"]) for key, feature in features.items()}
        {key: info[key] for key in ("data_path", "total_episodes")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EpisodeError(
            f"{path}: no meta/info.json of a LeRobotDataset: {error!r}. Give source=<data set>/meta/info.json"
        ) from error
    if version not in versions:
        other = {"v2.0": "lerobot_v21", "v2.1": "lerobot_v21", "v3.0": "lerobot_v3"}.get(version)
        raise EpisodeError(
            f"{path}: codebase_version is {version!r}; expected {' or '.join(versions)}. "
            + (f"Read it with format={other}" if other else "Convert it with lerobot's own script")
        )
    if "action" not in features:
        raise EpisodeError(f"{path}: features has no `action`; there is {', '.join(features)}")
    return file.parent.parent, info


def numeric(info: dict[str, Any]) -> dict[str, list[int]]:
    """{feature: shape} of the features whose rows are numbers: no images, no video, no text."""
    skip = (*BOOKKEEPING,)
    kinds = ("image", "video", "string")
    return {k: list(f["shape"]) for k, f in info["features"].items() if f["dtype"] not in kinds and k not in skip}


def clock(info: dict[str, Any]) -> list[str]:
    """The column that says when a row was recorded, if there is one."""
    return [key for key in ("timestamp",) if key in info["features"]]


def cameras(info: dict[str, Any], names: list[str] | None, where: str) -> dict[str, str]:
    """{camera: feature} of those named, or all; observation.images.top is `top`, and may be named either way."""
    features = {k: f["shape"] for k, f in info["features"].items() if f["dtype"] in ("image", "video")}
    short = {k.removeprefix("observation.").removeprefix("images."): k for k in features}
    names = None if names is None else [short.get(name, name) for name in names]
    chosen = _columns.cameras(names, features, where)
    return {name: feature for name, feature in short.items() if feature in chosen}


def observed(info: dict[str, Any], obs_keys: list[str] | None, where: str) -> list[str]:
    """The features that make up `state`, spelt as the data set does: observation.state unless `obs_keys` says otherwise."""
    here = {k: v for k, v in numeric(info).items() if k.startswith("observation.")}
    if obs_keys is None:
        return ["observation.state"] if "observation.state" in here else _columns.wanted(sorted(here), here, where)
    return _columns.wanted([k if k.startswith("observation.") else f"observation.{k}" for k in obs_keys], here, where)


def array(table, name: str, where: str) -> np.ndarray:
    """A column of a pyarrow table -> [N, ...]: lists are rows, lists of lists rows of rows; EpisodeError for ragged ones."""
    import pyarrow as pa

    if name not in table.column_names:
        raise EpisodeError(f"{where}: there is no column {name}; there is {', '.join(table.column_names)}")
    column = table.column(name).combine_chunks()
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    shape = [len(column)]
    while (
        pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type) or pa.types.is_large_list(column.type)
    ):
        flat = column.flatten()
        wide = len(flat) // max(len(column), 1)
        if column.null_count or len(flat) != wide * len(column) or len(set(column.value_lengths().to_pylist())) > 1:
            raise EpisodeError(f"{where}: rows of column {name} differ in length; expected equal ones")
        shape.append(wide)
        column = flat
    if column.null_count:
        raise EpisodeError(f"{where}: column {name} has {column.null_count} empty values")
    return column.to_numpy(zero_copy_only=False).reshape(shape)


def episode(
    table,
    info: dict[str, Any],
    where: str,
    *,
    root: Path,
    number: int,
    tasks: list[str],
    obs_keys: list[str] | None,
    origin: str | None,
    fps: float | None,
    sparse: bool,
    images: Callable[[str], Frames],
    cameras: dict[str, str],
) -> Episode:
    """The rows of one episode as an Episode. There is no final observation: the last action is lost."""
    action = _columns.actions(array(table, "action", where).reshape(table.num_rows, -1), where)
    keys = observed(info, obs_keys, where)
    obs = {"state": _columns.state([array(table, key, where) for key in keys], where)}
    if obs_keys is None:
        others = [k for k in numeric(info) if k.startswith("observation.") and k not in keys]
        obs |= {k.removeprefix("observation."): array(table, k, where) for k in others}
    obs |= _columns.frames(lambda camera: images(cameras[camera]), cameras, where)
    steps = len(action) - 1
    if steps < 1:
        raise EpisodeError(f"{where}: {len(action)} rows, and no final observation: nothing can be learnt")
    rewards = array(table, "next.reward", where).reshape(-1) if "next.reward" in info["features"] else None
    flags = array(table, "next.success", where).reshape(-1) if "next.success" in info["features"] else None
    if flags is None and sparse and rewards is not None:
        flags = rewards > 0
    learning, success = _outcome.outcome(flags, steps)
    done = "next.done" in info["features"] and bool(array(table, "next.done", where).reshape(-1)[-1])
    extras = {} if rewards is None else {"env_reward": rewards[:steps].astype(np.float32)}
    other = [k for k in numeric(info) if not k.startswith(("observation.", "next.")) and k != "action"]
    extras |= {key: array(table, key, where)[:steps] for key in other}
    robot = {"robot": info["robot_type"]} if info.get("robot_type") else {}
    late = {}
    if clock(info) and info.get("fps"):
        seconds = array(table, "timestamp", where).reshape(-1).astype(np.float64)
        late = {"skew_s": {"rows": _columns.skew(seconds - seconds[0] - np.arange(len(seconds)) / float(info["fps"]))}}
    return Episode(
        task="",
        obs=obs,
        action=action[:steps],
        reward=learning,
        terminated=bool(done and success),
        success=success,
        origin=origin or "human",
        fps=float(fps or info.get("fps") or 0.0),
        extras=extras,
        meta={"file": root.name, "demo": number, "language": "; ".join(tasks), **robot, **late},
    )


def whole(
    table,
    final: Callable[[str], Any],
    record: str,
    info: dict[str, Any],
    where: str,
    root: Path,
    images: Callable[[str], Frames],
    cameras: dict[str, str],
) -> Episode:
    """An episode that `flywheel export` wrote."""
    mine, kept = info["flywheel"], {}
    found = _exported.episode(
        json.loads(record), mine["streams"], lambda name: array(table, name, where), final, root.name
    )
    for feature in cameras.values():
        told = mine["cameras"][feature]
        kept[told["key"]] = np.asarray(images(feature)) if told["raw"] else images(feature)
    return found.replace(obs={**found.obs, **kept})


def embedded(column, last: bytes | None = None) -> Frames:
    """The pictures that are kept in the Parquet file, and perhaps one more behind them."""
    rows = [row["bytes"] for row in column.to_pylist()]
    if None in rows:
        raise EpisodeError("pictures in files of their own; expected their bytes in the Parquet file")
    return pictures(rows if last is None else [*rows, last])


def parts(path: Path, cameras: list[str] | None = None) -> list[Path]:
    """The files that decide what is read of the data set whose info.json this is: all; no video where cameras=[]."""
    root = Path(path).parent.parent
    found = (p for p in root.rglob("*") if p.is_file() and not any(n[0] == "." for n in p.relative_to(root).parts))
    return sorted(p for p in found if cameras != [] or p.suffix != ".mp4")
