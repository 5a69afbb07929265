"""robomimic's HDF5 layout: data/demo_*/{obs/<key>, actions, rewards, dones, states}, next_obs/<key> if recorded.

`obs_keys` orders the keys of obs and concatenates them into `state`; arrays of nested groups (Isaac Lab's datagen_info)
are there as `a/b`, and not in the default. Cameras are all keys of frames [T, H, W, C], nested ones as `a.b`, or those
that `cameras` names. `filter_key` takes the demos that mask/FILTER_KEY lists, `action_key` other actions (actions_abs).
Without next_obs there is no final observation, and the last action of each demonstration is lost.

`write` makes one file demos.hdf5. Beside robomimic's arrays each demo keeps `extras`, `start`, and, as JSON in
`flywheel`, what else flywheel knows; robomimic leaves them alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flywheel_datasets import _columns, _exported, _hdf5, _survey

from flywheel import outcome as outcomes
from flywheel.episode import Episode, EpisodeError, attempt


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float | None = None,
    cameras: list[str] | None = None,
    filter_key: str | None = None,
    action_key: str = "actions",
    outcome: Any = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield an episode for each demo in the order of their numbers, or an EpisodeError in its place."""
    rule = outcomes.rule(outcome)
    with _hdf5.opened(path) as file:
        if "data" not in file:
            raise EpisodeError(
                f"{path}: there is {', '.join(file)[:500] or 'nothing'}; expected a group 'data' with demo_0, ..."
            )
        data = file.group("data")
        names = sorted(data, key=lambda n: (len(n), n)) if filter_key is None else masked(file, filter_key)
        sparse = outcomes.sparse(r for r in (rewards(data, name) for name in names) if r is not None)
        for name in names:
            where = f"{path}: {name}"

            def one(name=name, where=where) -> Episode:
                told = {"origin": origin, "fps": fps, "cameras": cameras, "action_key": action_key}
                return episode(data.group(name), data, where, obs_keys, sparse=sparse, rule=rule, **told)

            yield attempt(one, where)


def masked(file: _hdf5.Group, key: str) -> list[str]:
    """The demos that mask/KEY lists."""
    there = file.get("mask")
    here = list(there) if isinstance(there, _hdf5.Group) else []
    if key not in here:
        raise EpisodeError(
            f"{file.where}: no mask/{key}, which filter_key asks for; there is {', '.join(here) or 'none'}"
        )
    return [text.rstrip(b"\0").decode("utf-8", "replace") for text in there.array(key).texts()]


def rewards(data: _hdf5.Group, name: str) -> np.ndarray | None:
    """A demo's own rewards; None where there are none that can be read (the demo itself says why)."""
    try:
        return data.array(f"{name}/rewards")[()].reshape(-1)
    except Exception:
        return None


def episode(
    demo: _hdf5.Group, data: _hdf5.Group, where: str, obs_keys, *, origin, fps, cameras, action_key, sparse, rule
) -> Episode:
    """One demo as an Episode; EpisodeError says what is missing and what is there."""
    if "flywheel" in demo and obs_keys is None:  # `flywheel export` wrote it: it comes back whole
        found = _columns.only(_exported.demo(demo, Path(where.rsplit(": ", 1)[0]).name), cameras)
        return found.replace(origin=origin or found.origin, fps=_columns.rate(fps or found.fps, where))
    if missing := [key for key in (action_key, "obs") if key not in demo]:
        raise EpisodeError(f"{where}: no {' and no '.join(missing)}; there is {', '.join(demo)[:500]}")
    action = _columns.actions(demo.array(action_key)[()], where)
    obs, images, steps, layout = observed(demo, data, len(action), where, obs_keys, cameras)
    reward = demo.array("rewards")[()].reshape(-1) if "rewards" in demo else None
    told = outcomes.decide(
        outcomes.Said(
            flag=demo.attr("success"),
            flags=demo.array("success")[()] if "success" in demo else None,
            reward=reward,
            done="dones" in demo and bool(demo.array("dones")[()].any()),
        ),
        steps, sparse=sparse, rule=rule, where=where,
        find=lambda key: demo.attr(key) if key not in demo else demo.array(key)[()],
    )  # fmt: skip
    seed, dropped = _columns.seed(demo.attr("seed"))
    outcome = {"outcome": _columns.text(demo.attr("outcome"))} if demo.attr("outcome") is not None else {}
    return Episode(
        task=_columns.text(data.attr("task", "")),
        obs={"state": obs, **images},
        action=action[:steps],
        reward=told.reward,
        terminated=told.terminated,
        success=told.success,
        origin=origin or _columns.text(demo.attr("origin", data.attr("origin", "human"))),
        seed=seed,
        fps=_columns.rate(fps or data.attr("fps", 0), where),
        extras={**({} if reward is None else {"env_reward": reward[:steps].astype(np.float32)}), **told.extras},
        start=_start(demo),
        meta={"file": Path(where.rsplit(": ", 1)[0]).name, "demo": demo.name.rsplit("/", 1)[-1], **outcome, **dropped}
        | layout,
    )


def observed(demo: _hdf5.Group, data: _hdf5.Group, steps: int, where: str, obs_keys, cameras):
    """(state [T+1, Do], {camera: frames}, T, what meta says of the state).

    T is one less than there are actions where no final observation is.
    """
    there = demo.group("obs").arrays()
    images = {key: value.shape for key, value in there.items() if value.ndim == 4}
    asked = data.attr("obs_keys", []) if obs_keys is None else obs_keys
    keys = [_columns.text(key) for key in asked] or [key for key in there if key not in images and "/" not in key]
    if absent := [key for key in keys if key not in there]:
        raise EpisodeError(f"{where}: obs has no {', '.join(absent)[:500]}\n{side_by_side(keys, there)}")
    chosen = _columns.cameras(cameras, images, where)
    after = demo.get("next_obs")
    seen = {}
    for key in dict.fromkeys([*keys, *chosen]):
        seen[key] = there[key][()]
        if isinstance(after, _hdf5.Group) and key in after and len(seen[key]) == steps:
            seen[key] = np.concatenate([seen[key], after.array(key).last(steps)])
    if not keys:
        raise EpisodeError(
            f"{where}: obs has no array of numbers; there is {_columns.listed({k: v.shape for k, v in there.items()})}"
        )
    rows = {len(part) for part in seen.values()}
    if len(rows) != 1 or rows.pop() not in (steps, steps + 1):
        raise EpisodeError(f"{where}: actions has {steps} rows\n{side_by_side(keys, there)}")
    state = _columns.state([seen[key] for key in keys], where)
    images = {key.replace("/", "."): _columns.pixels(seen[key]) for key in chosen}
    return state, images, len(state) - 1, _columns.layout({key: seen[key] for key in keys})


def side_by_side(wanted: list[str], obs: dict[str, _hdf5.Array]) -> str:
    """Two columns: the keys asked for, and the keys there are with their shapes."""
    here = [f"{key[:80]} {list(value.shape)}" for key, value in obs.items()]
    lines = [f"    {'obs_keys asks for':32} the file has"]
    for i in range(min(40, max(len(wanted), len(here)))):
        lines.append(f"    {wanted[i][:80] if i < len(wanted) else '':32} {here[i] if i < len(here) else ''}")
    return "\n".join([*lines, "    Name the keys in the task's order with obs_keys=[...]"])


def _start(demo: _hdf5.Group) -> dict[str, np.ndarray]:
    """The simulator state that a demo begins from, where the file keeps it by name (group `start`)."""
    there = demo.get("start")
    return {key: value[()] for key, value in there.arrays().items()} if isinstance(there, _hdf5.Group) else {}


def write(folder: Path, episodes: Iterable[Episode], seen: _survey.Survey, fps: float | None) -> None:
    """folder/demos.hdf5; every episode keeps the streams that it has."""
    seen.aside.append("extras, start, fps, terminated and meta (groups and a JSON text in each demo)")
    if seen.unknown:
        seen.lost.append(f"success, unknown of {seen.unknown} episodes: rewards are 0 there, as if they had failed")
    _survey.decoded(seen)
    total, first = 0, None
    with h5py.File(folder / "demos.hdf5", "w") as file:
        data = file.create_group("data")
        for number, episode in enumerate(episodes):
            first = first or episode
            demo, steps = data.create_group(f"demo_{number}"), len(episode)
            demo.attrs["num_samples"] = steps
            demo.attrs["origin"] = episode.origin
            if episode.seed is not None:
                demo.attrs["seed"] = episode.seed
            if episode.success is not None:
                demo.attrs["success"] = bool(episode.success)
            demo["actions"], demo["rewards"] = episode.action, episode.reward
            demo["dones"] = (np.arange(steps) == steps - 1) & bool(episode.terminated)
            for key, value in episode.obs.items():
                value = np.asarray(value)
                packed = {"chunks": (1, *value.shape[1:]), "compression": "gzip"} if value.ndim == 4 else {}
                for name, rows in (("obs", value[:-1]), ("next_obs", value[1:])):
                    demo.create_dataset(f"{name}/{key}", data=rows, **packed)
            for name, group in (("extras", episode.extras), ("start", episode.start)):
                for key, value in group.items():
                    demo[f"{name}/{key}"] = np.asarray(value)
            demo["flywheel"] = json.dumps(_survey.record(episode))
            total += steps
        data.attrs["total"] = total
        data.attrs["task"] = first.task
        flat = [key for key, value in first.obs.items() if value.ndim < 4]
        data.attrs["obs_keys"] = sorted(flat, key=lambda k: (k != "state", k))[: 1 if "state" in first.obs else None]
        data.attrs["env_args"] = json.dumps({"env_name": first.task, "type": 2, "env_kwargs": {}})
        if fps or len(seen.fps) == 1:
            data.attrs["fps"] = float(fps or first.fps)
