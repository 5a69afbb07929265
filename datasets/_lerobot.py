"""What LeRobotDataset v2.1 and v3.0 share: info.json, columns of Parquet to arrays, an episode from its rows.

Read by pyarrow; lerobot is not imported. A camera's pictures are the bytes in the Parquet file, its video the file
itself. Where meta and data disagree, the data's own columns (episode_index, frame_index, index, task_index) count."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flywheel_datasets import _columns, _exported

from flywheel import bounds
from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError
from flywheel.frames import Frames, pictures

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
INTERVENTION = ("intervention", "is_intervention", "complementary_info.is_intervention")
FIELD = re.compile(r"\{(\w+)(?::0?(\d)d)?\}")


def unit(folder: Path) -> Path | None:
    """The file that source= names for a data set's folder, None where it is none."""
    file = Path(folder) / "meta" / "info.json"
    return file if file.is_file() else None


def opened(path: Path, versions: tuple[str, ...]) -> tuple[Path, dict[str, Any]]:
    """The folder of a data set and its info, from the folder or its meta/info.json; EpisodeError if it is no such
    thing."""
    path = Path(path)
    file = path / "meta" / "info.json" if path.is_dir() else path
    root = file.parent.parent
    try:
        info = json.loads(bounds.inside(root, file.relative_to(root), str(path)).read_text(encoding="utf-8"))
        version, features = info["codebase_version"], info["features"]
        {key: (feature["dtype"], [int(n) for n in feature["shape"]]) for key, feature in features.items()}
        {key: info[key] for key in ("data_path", "total_episodes")}
    except EpisodeError:
        raise
    except Exception as error:
        raise EpisodeError(
            f"{path}: no meta/info.json of a LeRobotDataset: {error!r}. Give source=<data set>, its folder"
        ) from error
    if version not in versions:
        other = {"v2.0": "lerobot_v21", "v2.1": "lerobot_v21", "v3.0": "lerobot_v3"}.get(str(version))
        raise EpisodeError(
            f"{path}: codebase_version is {str(version)[:40]!r}; expected {' or '.join(versions)}. "
            + (f"Read it with format={other}" if other else "Convert it with lerobot's own script")
        )
    if "action" not in features:
        raise EpisodeError(f"{path}: features has no `action`; there is {', '.join(features)[:500]}")
    info["fps"] = _columns.rate(info.get("fps"), f"{path}: info.json")
    return root, info


def place(root: Path, pattern: Any, where: str, **fields: Any) -> Path:
    """The file that a template of info.json names ("data/chunk-{chunk_index:03d}/..."), which must lie in the data
    set."""

    def one(found: re.Match) -> str:
        value = fields.get(found[1])
        if value is None:
            raise EpisodeError(f"{where}: the template {str(pattern)[:200]!r} asks for {found[1]}, which is not known")
        return str(value) if found[2] is None else f"{int(value):0{found[2]}d}"

    return bounds.inside(root, FIELD.sub(one, str(pattern)), where)


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
    """The features that make up `state`, spelt as the data set does: observation.state unless `obs_keys` says
    otherwise."""
    here = {k: v for k, v in numeric(info).items() if k.startswith("observation.")}
    if obs_keys is None:
        return ["observation.state"] if "observation.state" in here else _columns.wanted(sorted(here), here, where)
    return _columns.wanted([k if k.startswith("observation.") else f"observation.{k}" for k in obs_keys], here, where)


def array(table, name: str, where: str) -> np.ndarray:
    """A column of a pyarrow table -> [N, ...]: lists are rows, lists of lists rows of rows; EpisodeError for ragged
    ones."""
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


def ordered(table, where: str):
    """The rows of one episode in the order of their frame_index; EpisodeError where one is missing or there twice."""
    if "frame_index" not in table.column_names:
        return table
    frame = array(table, "frame_index", where).reshape(-1)
    order = np.argsort(frame, kind="stable")
    steps = np.diff(frame[order].astype(np.int64))
    if (steps != 1).any():
        what = "twice" if (steps < 1).any() else "missing"
        at = int(frame[order][int((steps != 1).argmax())])
        raise EpisodeError(f"{where}: frame_index: a row after {at} is {what}; expected every frame once")
    return table if (order == np.arange(len(order))).all() else table.take(order)


def rewarded(info: dict[str, Any], files: list[Path]) -> bool:
    """Does next.reward of the whole data set say who succeeded (outcome.sparse)? Files that cannot be read say it
    themselves."""
    from flywheel_datasets import _parquet

    def rewards():
        for file in files:
            try:
                yield array(_parquet.table(file, ["next.reward"]), "next.reward", file.name)
            except Exception:
                continue

    return "next.reward" in info["features"] and outcomes.sparse(rewards())


def tasks(root: Path) -> dict[int, str]:
    """{task_index: words} of the data set, as far as they can be read."""
    from flywheel_datasets import _parquet

    try:
        if (file := root / "meta" / "tasks.jsonl").is_file():
            rows = [json.loads(line) for line in bounds.inside(root, file, "").read_text("utf-8").splitlines() if line]
        else:
            rows = _parquet.table(bounds.inside(root, root / "meta" / "tasks.parquet", "")).to_pylist()
        words = [k for k in (rows[0] if rows else ()) if k != "task_index"]
        return {int(row["task_index"]): str(row[words[0]]) for row in rows if words}
    except Exception:
        return {}  # words about an episode are not worth the episode


def words(told: Any, table, known: dict[int, str]) -> list[str]:
    """What an episode is about: as its listing says, else by the task_index of its rows."""
    if isinstance(told, list) and all(isinstance(word, str) for word in told):
        return told
    if "task_index" not in table.column_names:
        return []
    return [known[n] for n in dict.fromkeys(table.column("task_index").to_pylist()) if n in known]


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
    rule: outcomes.Rule | None,
    images: Callable[[str], Frames],
    cameras: dict[str, str],
) -> Episode:
    """The rows of one episode as an Episode. There is no final observation: the last action is lost."""
    action = _columns.actions(array(table, "action", where), where)
    keys = observed(info, obs_keys, where)
    parts = {key.removeprefix("observation."): array(table, key, where) for key in keys}
    obs = {"state": _columns.state(list(parts.values()), where)}
    if obs_keys is None:
        others = [k for k in numeric(info) if k.startswith("observation.") and k not in keys]
        obs |= {k.removeprefix("observation."): array(table, k, where) for k in others}
    obs |= _columns.frames(lambda camera: images(cameras[camera]), cameras, where)
    steps = len(action) - 1
    if steps < 1:
        raise EpisodeError(f"{where}: {len(action)} rows, and no final observation: nothing can be learnt")
    told, extras = judged(table, info, where, steps, sparse, rule)
    other = [k for k in numeric(info) if not k.startswith(("observation.", "next.")) and k != "action"]
    extras |= {key: array(table, key, where)[:steps] for key in other}
    helped = next((key for key in INTERVENTION if key in extras), None)
    if helped:  # steps at which a person took over: kept under one name, and counted
        extras["intervention"] = np.asarray(extras.pop(helped), bool).reshape(steps, -1).any(axis=1)
    told_by = {"interventions": int(extras["intervention"].sum())} if helped else {}
    robot = {"robot": str(info["robot_type"])[:255]} if info.get("robot_type") else {}
    late = {}
    if clock(info) and info.get("fps"):
        seconds = array(table, "timestamp", where).reshape(-1).astype(np.float64)
        late = {"skew_s": {"rows": _columns.skew(seconds - seconds[0] - np.arange(len(seconds)) / float(info["fps"]))}}
    return Episode(
        task="",
        obs=obs,
        action=action[:steps],
        reward=told.reward,
        terminated=told.terminated,
        success=told.success,
        origin=origin or "human",
        fps=_columns.rate(fps or info.get("fps"), where),
        extras={**extras, **told.extras},
        meta={"file": root.name, "demo": number, "language": "; ".join(tasks), **robot, **late, **told_by}
        | _columns.layout(parts),
    )


def judged(table, info, where: str, steps: int, sparse: bool, rule) -> tuple[outcomes.Outcome, dict[str, np.ndarray]]:
    """The outcome of an episode, and its own reward for extras. next.done only marks the end of a recording."""

    def column(key: str) -> np.ndarray | None:
        return array(table, key, where).reshape(-1) if key in table.column_names else None

    reward, done = column("next.reward"), column("next.done")
    said = outcomes.Said(flags=column("next.success"), reward=reward, done=done is not None and bool(done[-1]))
    told = outcomes.decide(said, steps, sparse=sparse, rule=rule, find=column, where=where)
    return told, {} if reward is None else {"env_reward": reward[:steps].astype(np.float32)}


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
    rows = [row["bytes"] if isinstance(row, dict) else None for row in column.to_pylist()]
    if None in rows:
        raise EpisodeError("pictures in files of their own; expected their bytes in the Parquet file")
    return pictures(rows if last is None else [*rows, last])


def parts(path: Path, cameras: list[str] | None = None) -> list[Path]:
    """The files that decide what is read of the data set whose info.json this is: all; no video where cameras=[]."""
    root = Path(path).parent.parent
    found = (p for p in root.rglob("*") if p.is_file() and not any(n[0] == "." for n in p.relative_to(root).parts))
    return sorted(p for p in found if (cameras != [] or p.suffix != ".mp4") and bounds.within(root, p))
