"""robomimic's HDF5 layout: data/demo_*/{obs/<key>, actions, rewards, dones, states}, next_obs/<key> if recorded.

`obs_keys` orders the keys of obs and concatenates them into `state`. Cameras are all keys of frames [T, H, W, C], or those
that `cameras` names. Without next_obs there is no final observation, and the last action of each demonstration is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from flywheel_datasets import _columns, _exported

from flywheel.episode import Episode, EpisodeError


def read(
    path: Path,
    obs_keys: list[str] | None = None,
    origin: str | None = None,
    fps: float | None = None,
    cameras: list[str] | None = None,
) -> Iterator[Episode | EpisodeError]:
    """Yield an episode for each demo in the order of their numbers, or an EpisodeError in its place."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise EpisodeError(f"{path}: not an HDF5 file that can be read: {error}") from error
    with file:
        if "data" not in file:
            raise EpisodeError(
                f"{path}: there is {', '.join(file) or 'nothing'}; expected a group 'data' with demo_0, ..."
            )
        data = file["data"]
        for name in sorted(data, key=lambda n: (len(n), n)):
            try:
                yield episode(data[name], data, f"{path}: {name}", obs_keys, origin, fps, cameras)
            except EpisodeError as error:
                yield error
            except (ValueError, TypeError, KeyError, OSError) as error:  # what a damaged group may raise
                yield EpisodeError(f"{path}: {name}: {error!r}")


def episode(demo: h5py.Group, data: h5py.Group, where: str, obs_keys, origin, fps, cameras) -> Episode:
    """One demo as an Episode; EpisodeError says what is missing and what is there."""
    if "flywheel" in demo and obs_keys is None:  # `flywheel export` wrote it: it comes back whole
        found = _columns.only(_exported.demo(demo), cameras)
        return found.replace(origin=origin or found.origin, fps=float(fps or found.fps))
    if missing := [key for key in ("actions", "obs") if key not in demo]:
        raise EpisodeError(f"{where}: no {' and no '.join(missing)}; there is {', '.join(demo)}")
    keys = list(data.attrs.get("obs_keys", [])) if obs_keys is None else list(obs_keys)
    images = {key: value.shape for key, value in demo["obs"].items() if value.ndim == 4}
    keys = keys or sorted(set(demo["obs"]) - set(images))
    keys = [k.decode() if isinstance(k, bytes) else str(k) for k in keys]
    if absent := [key for key in keys if key not in demo["obs"]]:
        raise EpisodeError(f"{where}: obs has no {', '.join(absent)}\n{side_by_side(keys, demo['obs'])}")
    action = np.asarray(demo["actions"], np.float32)
    steps = len(action)
    if action.ndim != 2:
        raise EpisodeError(f"{where}: actions is {list(action.shape)}; expected [T, Da]")
    seen = {}
    for key in [*keys, *(images := _columns.cameras(cameras, images, where))]:
        seen[key] = demo["obs"][key][()]
        if "next_obs" in demo and key in demo["next_obs"] and len(seen[key]) == steps:
            seen[key] = np.concatenate([seen[key], demo["next_obs"][key][-1:]])
    rows = {len(part) for part in seen.values()}
    if len(rows) != 1 or rows.pop() not in (steps, steps + 1):
        raise EpisodeError(f"{where}: actions has {steps} rows\n{side_by_side(keys, demo['obs'])}")
    obs = _columns.state([seen[key] for key in keys], where)
    if len(obs) == steps:
        steps -= 1  # no final observation
        action = action[:steps]
    reward = np.asarray(demo["rewards"], np.float32)[:steps] if "rewards" in demo else np.zeros(steps, np.float32)
    dones = np.asarray(demo["dones"]).astype(bool)[:steps] if "dones" in demo else np.zeros(steps, bool)
    known = demo.attrs.get("success")
    won = bool(known) if known is not None else (bool((reward > 0).any()) if "rewards" in demo else None)
    learning = np.zeros(steps, np.float32)
    if won:
        learning[int((reward > 0).argmax()) if set(np.unique(reward)) <= {0.0, 1.0} and (reward > 0).any() else -1] = (
            1.0
        )
    extras = {"env_reward": reward}
    seed = demo.attrs.get("seed")
    return Episode(
        task=str(data.attrs.get("task", "")),
        obs={"state": obs, **{key: _columns.pixels(seen[key]) for key in images}},
        action=action,
        reward=learning,
        terminated=bool(won and dones.any()),
        success=won,
        origin=origin or _text(demo.attrs.get("origin", data.attrs.get("origin", "human"))),
        seed=None if seed is None else int(seed),
        fps=float(fps or data.attrs.get("fps", 0) or 0),
        extras=extras,
        start=_start(demo),
        meta={"file": Path(demo.file.filename).name, "demo": demo.name.rsplit("/", 1)[-1], **_told(demo)},
    )


def side_by_side(wanted: list[str], obs: h5py.Group) -> str:
    """Two columns: the keys asked for, and the keys there are with their shapes."""
    here = [f"{key} {list(obs[key].shape)}" for key in obs]
    lines = [f"    {'obs_keys asks for':32} the file has"]
    for i in range(max(len(wanted), len(here))):
        lines.append(f"    {wanted[i] if i < len(wanted) else '':32} {here[i] if i < len(here) else ''}")
    return "\n".join([*lines, "    Name the keys in the task's order with obs_keys=[...]"])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _told(demo: h5py.Group) -> dict[str, Any]:
    return {"outcome": _text(demo.attrs["outcome"])} if "outcome" in demo.attrs else {}


def _start(demo: h5py.Group) -> dict[str, np.ndarray]:
    """The simulator state that a demo begins from, where the file keeps it by name (group `start`)."""
    if "start" not in demo:
        return {}
    return {key: np.asarray(value) for key, value in demo["start"].items()}
